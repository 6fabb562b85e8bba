"""Descriptors, alarms and the order of events, with pipes for sources."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from agent.wire.event_poll import EventPoll
from agent.wire.events import Disconnected, Event, Readable
from agent.wire.transport import new_poll


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    for descriptor in (reading, writing):
        try:
            os.close(descriptor)
        except OSError:
            continue  # the test closed it


def watch(poll: EventPoll, descriptor: int) -> None:
    def report(events: list[Event]) -> None:
        os.read(descriptor, 1)
        events.append(Readable(descriptor))

    poll.watch(descriptor, report)


def test_a_time_out_gives_nothing() -> None:
    poll = new_poll()
    started = time.monotonic()
    assert poll.poll(0) == []
    assert poll.poll(20) == []
    assert time.monotonic() - started >= 0.02


def test_a_descriptor_is_reported_until_it_is_forgotten(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    poll = new_poll()
    watch(poll, reading)
    os.write(writing, b"ab")
    assert poll.poll(None) == [Readable(reading)]
    assert poll.poll(None) == [Readable(reading)]
    assert poll.poll(0) == []
    os.write(writing, b"c")
    poll.forget(reading)
    poll.forget(reading)
    assert poll.poll(0) == []


def test_a_closed_other_end_is_reported(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    poll = new_poll()
    watch(poll, reading)
    os.close(writing)
    assert poll.poll(None) == [Readable(reading)]


def test_an_alarm_rings_once_and_its_wake_up_is_not_an_event(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    poll = new_poll()
    watch(poll, reading)
    poll.alarm("a", 5, lambda: os.write(writing, b"x"))
    started = time.monotonic()
    assert poll.poll(None) == [Readable(reading)]
    assert time.monotonic() - started >= 0.005
    assert poll.poll(10) == []


def test_alarms_are_replaced_and_taken_back(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    poll = new_poll()
    watch(poll, reading)
    poll.alarm("a", 1, lambda: os.write(writing, b"never"))
    poll.alarm("a", 2, lambda: os.write(writing, b"x"))
    poll.alarm("b", 1, lambda: os.write(writing, b"never"))
    poll.silence("b")
    poll.silence("b")
    assert poll.poll(None) == [Readable(reading)]
    assert poll.poll(10) == []


def test_a_wake_up_without_an_event_goes_on_waiting(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    poll = new_poll()
    poll.watch(reading, lambda events: [os.read(reading, 1), None][1])  # a message that had to be dropped
    os.write(writing, b"x")
    started = time.monotonic()
    assert poll.poll(20) == []
    assert time.monotonic() - started >= 0.02


def test_changes_of_connections_come_first_and_do_not_wait(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    poll = new_poll()
    watch(poll, reading)
    os.write(writing, b"x")
    poll.pending.append(Disconnected("b"))
    assert poll.poll(None) == [Disconnected("b"), Readable(reading)]
    poll.pending.append(Disconnected("c"))
    assert poll.poll(None) == [Disconnected("c")]
