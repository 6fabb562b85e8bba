"""Turns between clients and the rate they share, in simulated time."""

from __future__ import annotations

import random

import pytest

from agent.wire.bulk_turns import BURST_S, MAX_WAITING, WAIT_S, Turns

MIB = 1 << 20


def test_without_a_rate_everything_goes_at_once_in_order() -> None:
    turns: Turns[int] = Turns()
    assert turns.due_s(0.0) is None
    assert turns.next(0.0) is None
    for number in range(5):
        assert turns.add("a", number, MIB, 0.0)
    assert [turns.next(0.0) for _ in range(6)] == [0, 1, 2, 3, 4, None]


@pytest.mark.parametrize("seed", range(20))
def test_no_interval_gets_more_than_the_rate_and_all_of_it_is_used(seed: int) -> None:
    random_ = random.Random(seed)
    rate = random_.uniform(1e5, 1e8)
    turns: Turns[int] = Turns(rate)
    now, sent = random_.uniform(0, 1e6), []
    for _ in range(300):
        if random_.random() < 0.1:
            now += random_.uniform(0, 1)  # nobody asks for a while
        size = random_.randint(1, MIB)
        assert turns.add("a", size, size, now)
        due_s = turns.due_s(now)
        assert due_s is not None
        now += due_s
        assert turns.next(now) == size
        sent.append((now, size))
    for first in range(0, len(sent), 7):
        total = 0
        for at, size in sent[first:]:
            # What came before `at` in this window: the last one may go beyond by itself.
            assert total <= rate * (at - sent[first][0] + BURST_S) + MIB + 1e-3 * rate
            total += size
    busy: Turns[int] = Turns(1e6)
    for number in range(10):
        busy.add("a", number, 100_000, 0.0)
    at = 0.0
    while len(busy):
        at += busy.due_s(at) or 0.0
        busy.next(at)
    assert at == pytest.approx(0.9 - BURST_S, abs=1e-6)


def test_devices_share_by_bytes_whatever_they_ask_for() -> None:
    turns: Turns[tuple[str, int]] = Turns(1e7)
    sizes = {"large": MIB, "small": 64 << 10, "tiny": 1 << 10}
    got = dict.fromkeys(sizes, 0)
    now = 0.0
    for _ in range(4000):
        for device, size in sizes.items():
            while turns.add(device, (device, size), size, now):
                pass
        now += turns.due_s(now) or 0.0
        found = turns.next(now)
        assert found is not None
        got[found[0]] += found[1]
    assert max(got.values()) - min(got.values()) <= 2 * MIB


def test_who_comes_late_or_was_away_is_neither_starved_nor_owed() -> None:
    turns: Turns[str] = Turns()
    for _ in range(MAX_WAITING):
        turns.add("early", "early", MIB, 0.0)
    for _ in range(10):
        turns.next(0.0)
    for _ in range(8):
        turns.add("late", "late", MIB, 0.0)
    order = [turns.next(0.0) for _ in range(16)]
    for count in range(2, 16):
        assert count / 2 - 1 <= order[:count].count("late") <= count / 2 + 1
    # Alone for long, then beside another one: the other is not paid for the time before.
    while turns.next(0.0):
        pass
    for _ in range(6):
        turns.add("new", "new", MIB, 0.0)
        turns.add("early", "early", MIB, 0.0)
    first = [turns.next(0.0) for _ in range(6)]
    assert 2 <= first.count("early") <= 4


def test_a_device_waits_with_a_bounded_number_and_can_be_dropped() -> None:
    turns: Turns[int] = Turns()
    assert [turns.add("a", n, 1, 0.0) for n in range(MAX_WAITING + 1)] == [True] * MAX_WAITING + [False]
    assert turns.add("b", 1, 1, 0.0)
    turns.drop("a")
    turns.drop("stranger")
    assert len(turns) == 1


def test_who_waits_long_is_told_so_and_only_so_often() -> None:
    turns: Turns[str] = Turns(1.0)
    turns.add("a", "a1", 100, 0.0)
    assert turns.next(0.0) == "a1"
    turns.add("a", "a2", 100, 0.0)
    turns.add("a", "a3", 100, 0.0)
    turns.add("b", "b1", 100, 1.0)
    assert turns.overdue(WAIT_S - 0.1) == []
    assert turns.overdue(WAIT_S) == ["a2"]
    assert turns.overdue(WAIT_S + 1.0) == ["b1"]
    assert turns.overdue(2 * WAIT_S) == ["a2"]
    assert len(turns) == 3


def test_what_was_not_sent_is_given_back() -> None:
    turns: Turns[int] = Turns(1000.0)
    turns.add("a", 1, 1000, 0.0)
    turns.add("a", 2, 1000, 0.0)
    turns.next(0.0)
    assert turns.due_s(0.0) == pytest.approx(1.0 - BURST_S)
    turns.refund(1000)
    assert turns.due_s(0.0) == 0.0


def test_nothing_is_remembered_of_those_who_left() -> None:
    turns: Turns[int] = Turns()
    for number in range(1000):
        turns.add(f"device-{number}", number, 10, 0.0)
        turns.next(0.0)
    assert len(turns._clients) <= 2
