"""Summaries: percentiles against NumPy, every rate and count against sessions whose times are known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgectl.load.summary import Objectives, Outcome, distribution, gaps_ms, most_open, percentile, summary, timeline

FINITE = st.floats(0, 1e6, allow_nan=False)


@given(st.lists(FINITE, min_size=1, max_size=60), st.floats(0, 100))
def test_percentiles_are_numpys(samples: list[float], percent: float) -> None:
    expected = float(np.percentile(samples, percent))
    assert percentile(sorted(samples), percent) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(st.lists(FINITE, min_size=1, max_size=60))
def test_distributions_are_numpys(samples: list[float]) -> None:
    found = distribution([None, *samples, None])
    assert found is not None
    assert found["samples"] == len(samples)
    assert found["mean"] == pytest.approx(np.mean(samples), abs=1e-3)
    assert found["max"] == pytest.approx(max(samples), abs=1e-3)
    for percent in (50, 95, 99):
        assert found[f"p{percent}"] == pytest.approx(np.percentile(samples, percent), abs=1e-3)


def test_nothing_has_no_distribution() -> None:
    assert distribution([]) is None
    assert distribution([None]) is None
    for samples, percent in (([], 50.0), ([1.0], 101.0), ([1.0], -1.0)):
        with pytest.raises(ValueError, match="percentile"):
            percentile(samples, percent)


def session(number: int, due_s: float, first_s: float, tokens: int, each_s: float, **fields: Any) -> Outcome:
    """One that was sent 1 ms late, and whose last byte came 1 ms after its last token."""
    arrivals = [first_s + index * each_s for index in range(tokens)]
    values: dict[str, Any] = {
        "key": number % 2,
        "prompt_tokens": 10,
        "max_tokens": tokens,
        "sent_s": due_s + 0.001,
        "arrivals_s": arrivals,
        "tokens": tokens,
        "ended_s": (arrivals[-1] if arrivals else due_s) + 0.001,
        "end": "completed",
        "tries": 1,
        **fields,
    }
    return Outcome(number=number, due_s=due_s, **values)


def test_times_begin_when_a_session_was_due() -> None:
    late = session(0, 1.0, 1.5, 5, 0.1, sent_s=1.4)
    assert late.time_to_first_token_ms == pytest.approx(500)
    assert late.ms_per_token == pytest.approx(100)
    assert late.end_to_end_ms == pytest.approx(901)
    assert gaps_ms(late) == pytest.approx([100] * 4)


def test_what_has_no_time_has_none() -> None:
    refused = session(0, 1.0, 1.0, 0, 0.1, end="refused")
    assert (refused.time_to_first_token_ms, refused.ms_per_token, refused.end_to_end_ms) == (None, None, None)
    one = session(0, 1.0, 1.1, 1, 0.1)
    assert one.ms_per_token is None
    # Two tokens in one chunk: nobody saw a time between them.
    one.tokens = 2
    assert one.ms_per_token is None


def test_a_summary_counts_what_happened() -> None:
    outcomes = [
        session(0, 0.0, 9.0, 10, 0.5),  # warm-up: slow, but not counted
        session(1, 10.0, 10.1, 11, 0.1),
        session(2, 11.0, 11.3, 11, 0.2),
        session(3, 12.0, 12.1, 3, 0.1, end="cancelled", max_tokens=9),
        session(4, 13.0, 13.0, 0, 0.0, end="refused", problem="HTTP 429 queue_full", tries=3),
        session(5, 14.0, 14.1, 2, 0.1, end="failed", problem="broke off: device_lost", max_tokens=9),
        session(6, 15.0, 15.1, 11, 0.1, max_tokens=12),
    ]
    found: dict[str, Any] = summary(outcomes, 1, Objectives(ttft_ms=200, tpot_ms=150))
    assert found["sessions"] == {
        "offered": 6,
        "completed": 3,
        "cancelled": 1,
        "refused": 1,
        "failed": 1,
        "short": 1,
        "tried_again": 1,
        "warm_up": 1,
    }
    assert found["problems"] == {"HTTP 429 queue_full": 1, "broke off: device_lost": 1}
    assert found["seconds"] == pytest.approx(16.101 - 10.0)
    assert found["tokens"] == 11 + 11 + 3 + 2 + 11
    assert found["offered_per_s"] == pytest.approx(5 / 5.0)
    # Over between 10 and 15 s: the warm-up's, and all but the last, which came only then.
    assert found["over_while_offered_per_s"] == pytest.approx(6 / 5.0)
    assert found["sessions_per_s"] == pytest.approx(3 / 6.101, abs=1e-3)
    # Tokens of the warm-up that came in the window were made in it: those at 10.0, 10.5, … 13.5.
    assert found["tokens_per_s"] == pytest.approx((38 + 8) / 6.101, abs=1e-3)
    assert found["steady_tokens_per_s"] == pytest.approx((27 + 8) / 5.0, abs=1e-3)
    # Of five that ended by themselves two met both: session 2 was late and slow.
    assert found["goodput"]["share"] == pytest.approx(2 / 5)
    assert found["goodput"]["sessions_per_s"] == pytest.approx(2 / 6.101, abs=1e-3)
    assert found["time_to_first_token_ms"]["samples"] == 5
    assert found["end_to_end_ms"]["samples"] == 3
    assert found["late_ms"]["max"] == pytest.approx(1.0)
    assert [each["offered"] for each in found["by_key"]] == [3, 3]
    assert sum(each["refused"] for each in found["by_key"]) == 1


def test_warm_up_is_not_counted() -> None:
    outcomes = [session(number, float(number), number + 0.1 + (number < 3), 5, 0.01) for number in range(10)]
    found: dict[str, Any] = summary(outcomes, 3, Objectives())
    assert found["time_to_first_token_ms"]["max"] == pytest.approx(100, abs=1e-2)
    assert found["sessions"]["warm_up"] == 3
    with pytest.raises(ValueError, match="warm-up"):
        summary(outcomes, 10, Objectives())


@given(st.floats(0.01, 10), st.floats(0.001, 0.5), st.floats(1, 1e4), st.floats(1, 1e3))
def test_goodput_means_both_objectives(first_s: float, each_s: float, ttft_ms: float, tpot_ms: float) -> None:
    outcome = session(0, 0.0, first_s, 4, each_s)
    met = Objectives(ttft_ms, tpot_ms).met_by(outcome)
    assert met == (outcome.time_to_first_token_ms <= ttft_ms and outcome.ms_per_token <= tpot_ms)  # type: ignore[operator]
    assert Objectives().met_by(outcome)
    assert not Objectives().met_by(session(0, 0.0, first_s, 4, each_s, end="failed"))


@given(st.lists(st.tuples(st.floats(0, 30), st.floats(0.01, 5), st.integers(1, 20)), min_size=1, max_size=30))
def test_a_timeline_loses_no_token(sessions: list[tuple[float, float, int]]) -> None:
    outcomes = [session(n, due, due + first, tokens, 0.05) for n, (due, first, tokens) in enumerate(sessions)]
    points: list[Any] = timeline(outcomes)
    assert [point["s"] for point in points] == [float(at) for at in range(len(points))]
    seconds = max(o.ended_s for o in outcomes) - min(o.due_s for o in outcomes)
    widths = [1.0] * (len(points) - 1) + [seconds - (len(points) - 1)]
    tokens = sum(point["tokens_per_s"] * width for point, width in zip(points, widths, strict=True))
    assert tokens == pytest.approx(sum(o.tokens for o in outcomes), abs=0.1)
    # Little's law: sessions open on average are the time all of them took over the whole.
    opened = sum(point["open"] * width for point, width in zip(points, widths, strict=True))
    assert opened == pytest.approx(sum(o.ended_s - o.due_s for o in outcomes), abs=0.1)
    assert max(point["open"] for point in points) <= most_open(outcomes) + 1e-3


def test_a_long_timeline_has_longer_intervals() -> None:
    outcomes = [session(n, 10.0 * n, 10.0 * n + 1, 5, 0.1) for n in range(700)]
    points: list[Any] = timeline(outcomes)
    assert len(points) <= 600
    assert points[1]["s"] == 12.0
    assert timeline([]) == []


def test_most_open_counts_no_session_that_ends_as_another_begins() -> None:
    chain = [session(n, float(n), n + 0.5, 1, 0.0, ended_s=n + 1.0) for n in range(5)]
    assert most_open(chain) == 1
    assert most_open([session(n, 0.0, 1.0, 1, 0.0) for n in range(7)]) == 7
    assert math.isnan(Outcome(0, 0, 1, 1, 0.0).ended_s)
