"""Every control message there and back, limits, and bytes that are refused with BadMessage and nothing else."""

from __future__ import annotations

import random
from typing import Any, get_args

import msgpack
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import BadMessage
from agent.wire import measure_messages, messages
from agent.wire.link_report import LinkObservation, RadioObservation
from agent.wire.message import Message
from agent.wire.messages import FromAgent, FromSource, ToAgent, ToSource
from planner.channel import MAX_SEED, Channel, ChannelState
from planner.profile import DeviceProfile, LinkProfile
from tests.fakes.random_profiles import random_device

UNIONS = {"FromAgent": FromAgent, "FromSource": FromSource, "ToAgent": ToAgent, "ToSource": ToSource}
KINDS = sorted({kind for union in UNIONS.values() for kind in get_args(union)}, key=lambda kind: kind.__name__)

INTEGERS = st.integers(-(1 << 63), (1 << 64) - 1)
REASONS = st.dictionaries(st.text(), st.text(), max_size=3)
# Hypothesis takes msgspec's default factories for values.
st.register_type_strategy(
    messages.Telemetry,
    st.builds(
        messages.Telemetry,
        histograms=st.dictionaries(
            st.text(), st.builds(messages.HistogramSnapshot, st.lists(INTEGERS).map(tuple), st.floats()), max_size=2
        ),
        counters=st.dictionaries(st.text(), INTEGERS, max_size=3),
        links=st.lists(
            st.builds(LinkObservation, peer=st.text(), missing=REASONS, rtt_ms=st.none() | st.floats()), max_size=2
        ).map(tuple),
    ),
)
st.register_type_strategy(
    RadioObservation, st.builds(RadioObservation, signal_dbm=st.none() | st.floats(), missing=REASONS)
)
# A profile is checked when it is made: most values of its fields' types make none.
NAMES = st.from_regex(r"[a-z][a-z0-9-]{0,20}", fullmatch=True)
st.register_type_strategy(
    DeviceProfile, st.builds(lambda seed, name: random_device(random.Random(seed), name), st.integers(0, 999), NAMES)
)
TIMES_MS = st.floats(0, 1e6)
st.register_type_strategy(
    LinkProfile,
    st.builds(
        LinkProfile,
        source=NAMES.map("a-".__add__),
        destination=NAMES.map("b-".__add__),
        latency_ms=TIMES_MS,
        bandwidth_bytes_per_s=st.floats(1, 1e12),
        rtt_p50_ms=st.none() | TIMES_MS,
        jitter_ms=st.none() | TIMES_MS,
        estimated=st.booleans(),
    ),
)
# So is a channel.
SHARES = st.floats(0, 1)
st.register_type_strategy(
    ChannelState,
    st.builds(
        ChannelState,
        loss=SHARES,
        sigma=st.floats(0, 1e6),
        gain=st.floats(0, 1e3),
        snr_db=st.none() | st.floats(-200, 200),
        m=st.none() | st.floats(0.5, 100),
    ),
)
STATES = st.lists(st.from_type(ChannelState), min_size=1, max_size=4).map(tuple)
st.register_type_strategy(Channel, st.builds(Channel, states=STATES, seed=st.integers(0, MAX_SEED)))


def union_of(kind: type[Message]) -> Any:
    return next(union for union in UNIONS.values() if kind in get_args(union))


def filled(kind: type[Message]) -> st.SearchStrategy[Message]:
    """Messages of one kind with any values of their types."""
    return st.from_type(kind).filter(encodable)


def encodable(message: Message) -> bool:
    """MessagePack integers end at 64 bits; no field means to hold more."""
    try:
        messages.encode(message)
    except (OverflowError, ValueError):
        return False
    return True


def kind_name(kind: type[Message]) -> str:
    return str(kind.__struct_config__.tag)


def test_every_message_belongs_to_a_direction() -> None:
    modules = (messages.__name__, measure_messages.__name__)
    on_the_wire = {kind.__name__ for kind in Message.__subclasses__() if kind.__module__ in modules}
    assert on_the_wire == {kind.__name__ for kind in KINDS}


def test_kinds_are_told_apart_within_each_direction() -> None:
    for union in UNIONS.values():
        kinds = [kind_name(kind) for kind in get_args(union)]
        assert len(kinds) == len(set(kinds))


@pytest.mark.parametrize("kind", KINDS, ids=kind_name)
@settings(max_examples=20)
@given(data=st.data())
def test_a_message_arrives_as_it_was_sent(kind: type[Message], data: st.DataObject) -> None:
    message = data.draw(filled(kind))
    decoded = messages.decode(messages.encode(message), union_of(kind))
    assert messages.encode(decoded) == messages.encode(message)  # NaN is not equal to itself
    assert type(decoded) is kind


@pytest.mark.parametrize("kind", KINDS, ids=kind_name)
@settings(max_examples=20)
@given(data=st.data())
def test_mutations_are_accepted_or_refused(kind: type[Message], data: st.DataObject) -> None:
    fields = msgspec.to_builtins(data.draw(filled(kind)))
    names = sorted(fields)
    values = st.recursive(
        st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.text() | st.binary(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.integers(0, 9), inner, max_size=2),
        max_leaves=5,
    )
    for name in data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=3)):
        if data.draw(st.booleans()):
            fields.pop(name, None)
        else:
            fields[name] = data.draw(values)
    packed = msgpack.packb(fields)
    try:
        decoded = messages.decode(packed, union_of(kind))
    except BadMessage:
        return
    assert isinstance(decoded, get_args(union_of(kind)))


@given(st.binary(max_size=400))
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(BadMessage):
        messages.decode(data, FromAgent)


@given(st.data())
def test_truncated_and_flipped_bytes_are_accepted_or_refused(data: st.DataObject) -> None:
    packed = bytearray(messages.encode(messages.Hello(1, "jetson", "0.1", "boot", "tcp://a:1", 1 << 33, "cpu")))
    position = data.draw(st.integers(0, len(packed) - 1))
    packed[position] ^= 1 << data.draw(st.integers(0, 7))
    for candidate in (bytes(packed), bytes(packed[:position])):
        try:
            messages.decode(candidate, FromAgent)
        except BadMessage:
            continue


def test_unknown_fields_are_ignored_and_unknown_kinds_named() -> None:
    heartbeat = {"kind": "heartbeat", "worker_tick": 3, "colour": "green"}
    assert messages.decode(msgpack.packb(heartbeat), FromAgent) == messages.Heartbeat(3)
    with pytest.raises(BadMessage, match="kind 'load'"):
        messages.decode(msgpack.packb({"kind": "load"}), FromAgent)
    with pytest.raises(BadMessage, match=r"kind 'heartbeat'.*worker_tick"):
        messages.decode(msgpack.packb({"kind": "heartbeat", "worker_tick": "3"}), FromAgent)


@pytest.mark.parametrize(
    "content",
    [
        {"kind": "heartbeat", "worker_tick": 1, "busy": "x" * (messages.MAX_STRING_BYTES + 1)},
        {"kind": "heartbeat", "worker_tick": 1, "busy": b"binary"},
        {"kind": "heartbeat", "worker_tick": 1, "more": msgpack.ExtType(1, b"x")},
        {"kind": "heartbeat", "worker_tick": 1, "more": {n: n for n in range(3)}},
        {"kind": "heartbeat", "worker_tick": 1, "more": {str(n): 0 for n in range(messages.MAX_MAP_LENGTH + 1)}},
        {"kind": "heartbeat", "worker_tick": 1, "more": [0] * (messages.MAX_ARRAY_LENGTH + 1)},
        ["heartbeat"],
        None,
    ],
    ids=["string", "binary", "extension", "integer-keys", "map", "array", "no-map", "nil"],
)
def test_limits(content: object) -> None:
    with pytest.raises(BadMessage):
        messages.decode(msgpack.packb(content), FromAgent)


def test_size_and_depth_are_limited() -> None:
    with pytest.raises(BadMessage, match="4194305 bytes, at most 4194304"):
        messages.decode(bytes(messages.MAX_CONTROL_BYTES + 1), FromAgent)
    for nested in (b"\x91" * 100_000, b"\x81\xa1a" * 100_000):
        with pytest.raises(BadMessage):
            messages.decode(nested, FromAgent)


def test_the_longest_prompt_fits() -> None:
    longest = messages.OpenSession("s", 1, (200_000,) * 131_072, 1, messages.Sampling())
    packed = messages.encode(longest)
    assert len(packed) <= messages.MAX_CONTROL_BYTES
    assert messages.decode(packed, ToSource) == longest
