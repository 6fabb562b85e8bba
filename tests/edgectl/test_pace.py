"""Observed pace: what it says of numbers of sessions that were and were not seen, of waiting, and of rates."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgectl.pace import RATE_SPAN_S, SMOOTHING, Pace, TokenRate, Turnover, completion_s


def test_what_was_not_seen_is_bounded_by_what_was() -> None:
    pace = Pace()
    assert (pace.token_s(1), pace.prompt_s) == (None, None)
    pace.token(2, 0.1)
    pace.token(4, 0.3)
    assert [pace.token_s(sessions) for sessions in (1, 2, 3, 4)] == [0.1, 0.1, pytest.approx(0.2), 0.3]
    assert pace.token_s(8) == pytest.approx(0.6)


def test_the_plan_is_believed_until_something_was_seen() -> None:
    pace = Pace(0.05)
    assert (pace.token_s(1), pace.token_s(2)) == (0.05, 0.1)
    pace.token(1, 0.2)
    assert pace.token_s(1) == 0.2
    pace.token(1, 0.1)
    assert pace.token_s(1) == pytest.approx(0.2 - 0.1 * SMOOTHING)


@given(
    st.dictionaries(st.integers(1, 16), st.floats(1e-3, 10.0), min_size=1),
    st.integers(1, 16),
)
def test_an_expectation_lies_among_what_was_seen_or_grows_in_proportion(seen: dict[int, float], sessions: int) -> None:
    pace = Pace()
    for number, seconds in seen.items():
        pace.token(number, seconds)
    expected = pace.token_s(sessions)
    assert expected is not None
    if sessions <= max(seen):
        assert min(seen.values()) * 0.999 <= expected <= max(seen.values()) * 1.001
    else:
        assert expected == pytest.approx(seen[max(seen)] * sessions / max(seen))


def test_a_session_is_expected_to_take_its_prompt_and_its_tokens() -> None:
    fast, slow, unknown = Pace(), Pace(), Pace()
    fast.token(1, 0.01)
    fast.first_token(100, 1.0)
    slow.token(1, 0.04)
    slow.first_token(100, 0.2)
    long_prompt = completion_s({0: fast, 1: slow}, {}, 1000, 10)
    assert long_prompt[0] == pytest.approx(10.1)
    assert long_prompt[1] == pytest.approx(2.4)
    few = completion_s({0: fast, 1: slow, 2: unknown}, {0: 3}, 10, 100)
    assert few[0] == pytest.approx(10 * 0.01 + 100 * 0.04)
    assert few[2] == pytest.approx(10 * (0.01 + 0.002) / 2 + 100 * 0.04)
    assert completion_s({0: Pace(), 1: Pace()}, {}, 5, 5) == {0: 0.0, 1: 0.0}


def test_rows_come_free_at_the_rate_at_which_sessions_end() -> None:
    turnover = Turnover()
    assert turnover.wait_s(1, 4) is None
    turnover.row_freed(8.0)
    assert turnover.wait_s(1, 4) == 2.0
    assert turnover.wait_s(6, 4) == 12.0
    assert turnover.wait_s(6, 0) is None


def test_tokens_per_second_count_while_anybody_is_served() -> None:
    rate = TokenRate()
    assert rate.per_s(0.0) is None
    rate.busy(10.0)
    for tenth in range(1, 21):
        rate.token(10.0 + tenth / 10)
    assert rate.per_s(12.0) == pytest.approx(10.0)
    rate.idle(12.0)
    assert rate.per_s(500.0) == pytest.approx(10.0)
    rate.busy(500.0)
    assert rate.per_s(500.5) == pytest.approx(10.0), "nothing is known of the new ones yet"
    for second in range(40):
        rate.token(500.5 + second)
    assert rate.per_s(540.0) == pytest.approx(10 / RATE_SPAN_S)
