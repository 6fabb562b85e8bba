"""The transition table of devices, and who counts as lost."""

from __future__ import annotations

import pytest

from agent.wire.addresses import PeerKey
from agent.wire.messages import DEVICE_LOST_S, DEVICE_SUSPECT_S, PROTOCOL_VERSION, Heartbeat, Hello, Load
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
    assert table.silent(10.0 + DEVICE_LOST_S) == []
    assert [record.name for record in table.silent(10.1 + DEVICE_LOST_S)] == ["a"]
    assert table["a"].state is DeviceState.LOST
    assert table.silent(10.2 + DEVICE_LOST_S) == []


def test_a_device_is_suspected_once_and_before_it_is_lost() -> None:
    table = DeviceTable([("a", "ka"), ("b", "kb")])
    table.hello(b"1", hello("a"), "a", 10.0)
    record = table["a"]
    assert table.suspected(10.0 + DEVICE_SUSPECT_S) == []
    assert table.suspected(10.1 + DEVICE_SUSPECT_S) == [record]
    assert (record.is_present, record.is_suspected, table.suspected(10.2 + DEVICE_SUSPECT_S)) == (True, True, [])
    assert record.hear(15.0)
    assert not record.hear(15.5)
    assert table.suspected(15.6 + DEVICE_SUSPECT_S) == [record]
    assert table.silent(15.6 + DEVICE_LOST_S) == [record]
    assert not record.is_suspected, "lost is more than suspected"
    assert table.suspected(16.0 + DEVICE_LOST_S) == []


@pytest.mark.parametrize("again", [True, False])
def test_a_hello_ends_suspicion(again: bool) -> None:
    table = DeviceTable([("a", "ka")])
    table.hello(b"1", hello("a"), "a", 0.0)
    table.suspected(DEVICE_SUSPECT_S + 1)
    (table.reconnected if again else table.hello)(b"2", hello("a"), "a", 5.0)
    assert not table["a"].is_suspected


def test_peers_are_all_the_others() -> None:
    table = DeviceTable([("a", "ka"), ("b", "kb"), ("c", "kc")])
    assert table.peers_of("b") == (PeerKey("a", "ka"), PeerKey("c", "kc"))
    assert "d" not in table
