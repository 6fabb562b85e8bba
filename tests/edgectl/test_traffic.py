"""Which route a session goes by, and how long clients are told to wait."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from edgectl.routes import Seat
from edgectl.traffic import MAX_RETRY_S, MIN_RETRY_S, Traffic
from tests.fakes.fake_agents import two_sources

LEFT, RIGHT = Seat(1, 0, 2, "a"), Seat(3, 1, 2, "c")


def traffic() -> Traffic:
    found = Traffic()
    found.begin(two_sources(()))
    return found


def serve(observed: Traffic, seat: Seat, sessions: int, token_s: float) -> None:
    """So many sessions of one token after the first, `token_s` apart."""
    for _ in range(sessions):
        observed.seated(seat, 0.0)
    for _ in range(sessions):
        observed.first_token(seat, 0.0, 10, 10 * token_s)
        observed.token(seat, 0.0, token_s)
        observed.freed(seat, 1.0, 0.0)


def test_routes_of_which_nothing_is_known_share() -> None:
    assert traffic().choose([LEFT, RIGHT], {}, 10, 10) == LEFT
    assert traffic().choose([LEFT, RIGHT], {1: 1}, 10, 10) == RIGHT


def test_the_faster_route_fills_before_the_slower_one_begins() -> None:
    observed = traffic()
    serve(observed, LEFT, 1, 0.1)
    serve(observed, RIGHT, 1, 0.01)
    used: Counter[int] = Counter()
    assert observed.choose([LEFT, RIGHT], used, 10, 10) == RIGHT
    observed.seated(RIGHT, 0.0)
    used[RIGHT.micro_batch] += 1
    assert observed.choose([LEFT, RIGHT], used, 10, 10) == RIGHT
    assert observed.choose([LEFT], used, 10, 10) == LEFT


def test_a_route_that_slows_down_under_load_is_left_for_the_other() -> None:
    observed = traffic()
    serve(observed, LEFT, 1, 0.03)
    serve(observed, RIGHT, 1, 0.02)
    observed.seated(RIGHT, 0.0)
    assert observed.choose([LEFT, RIGHT], {3: 1}, 1, 100) == LEFT
    observed.seated(RIGHT, 0.0)
    for _ in range(60):
        observed.token(RIGHT, 1.0, 0.021)  # Two at a time cost next to nothing: its pipeline had bubbles.
    observed.freed(RIGHT, None, 2.0)
    assert observed.choose([LEFT, RIGHT], {3: 1}, 1, 100) == RIGHT


def test_another_plan_begins_with_what_it_predicts() -> None:
    observed = traffic()
    serve(observed, LEFT, 1, 9.0)
    observed.begin(replace(two_sources(()), predicted={"ms_per_token": 20.0}))
    assert [pace.token_s(1) for pace in observed.paces.values()] == [0.02, 0.02]


def test_advice_is_whole_seconds_within_bounds() -> None:
    observed = traffic()
    assert observed.retry_after_s(1, 4) is None
    observed.seated(LEFT, 0.0)
    observed.freed(LEFT, 10.0, 10.0)
    assert observed.retry_after_s(1, 4) == 3.0
    assert observed.retry_after_s(1, 100) == MIN_RETRY_S
    assert observed.retry_after_s(1000, 1) == MAX_RETRY_S
    assert observed.wait_s(1, 4) == 2.5
    assert observed.sessions_on(0) == 0
