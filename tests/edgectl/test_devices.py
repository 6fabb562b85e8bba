"""The transition table of devices, and who counts as lost."""

from __future__ import annotations

import pytest

from agent.wire.addresses import PeerKey
from agent.wire.messages import DEVICE_SILENCE_S, PROTOCOL_VERSION, Heartbeat, Hello, Load
from edgectl.devices import TRANSITIONS, DeviceEvent, DeviceRecord, DeviceState, DeviceTable

LOAD = Load("m", "d", ((0, 4),), "int4", 32, "fp16", 1, 64)


def hello(device: str) -> Hello:
    return Hello(PROTOCOL_VERSION, device, "0.1.0", "boot", f"tcp://{device}:1", 1 << 30, "cpu")


@pytest.mark.parametrize("state", DeviceState)
@pytest.mark.parametrize("event", DeviceEvent)
def test_every_pair_of_state_and_event_has_one_meaning(state: DeviceState, event: DeviceEvent) -> None:
    record = DeviceRecord("a", "key", state=state, load=LOAD)
    expected = TRANSITIONS[state].get(event, state)
    assert record.apply(event) is (expected is not state)
    assert record.state is expected
    holds = expected in (DeviceState.LOADING, DeviceState.READY)
    assert record.load == (LOAD if holds else None)


def test_every_state_can_be_reached_and_left() -> None:
    reached = {following for row in TRANSITIONS.values() for following in row.values()}
    assert reached == set(DeviceState) - {DeviceState.ABSENT}
    assert all(TRANSITIONS[state] for state in DeviceState)


def test_a_hello_starts_anew() -> None:
    table = DeviceTable([("a", "ka"), ("b", "kb")])
    table.hello(b"1", hello("a"), "a", 10.0)
    record = table["a"]
    record.apply(DeviceEvent.LOAD_SENT)
    record.load, record.problem, record.heartbeat = LOAD, "out of memory", Heartbeat(1)
    table.hello(b"2", hello("a"), "a", 11.0)
    assert (record.state, record.origin, record.load, record.problem) == (DeviceState.CONNECTED, b"2", None, "")
    assert record.heartbeat is None
    assert record.data_endpoint == "tcp://a:1"


def test_silence_is_counted_from_the_last_word() -> None:
    table = DeviceTable([("a", "ka"), ("b", "kb"), ("c", "kc")])
    table.hello(b"1", hello("a"), "a", 10.0)
    table.hello(b"2", hello("b"), "b", 12.0)
    assert table.silent(10.0 + DEVICE_SILENCE_S) == []
    assert [record.name for record in table.silent(10.1 + DEVICE_SILENCE_S)] == ["a"]
    assert table["a"].state is DeviceState.LOST
    assert table.silent(10.2 + DEVICE_SILENCE_S) == []


def test_peers_are_all_the_others() -> None:
    table = DeviceTable([("a", "ka"), ("b", "kb"), ("c", "kc")])
    assert table.peers_of("b") == (PeerKey("a", "ka"), PeerKey("c", "kc"))
    assert "d" not in table
