"""Curves through measured points: exact at them, linear between, and never optimistic outside."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.interpolation import Curve, DecodeTimes, head_curve, prefill_curve
from planner.profile import DecodePoint, HeadPoint, PrefillPoint, Timing

places = st.integers(0, 1000)
times = st.floats(0.0, 1e6)
curves = st.dictionaries(places, times, min_size=1, max_size=6)


@given(curves, st.floats(0, 1e4))
def test_passes_through_its_points_and_is_never_negative(points: dict[int, float], at: float) -> None:
    curve = Curve(points.items())
    for place, value in points.items():
        assert curve(place) == pytest.approx(value)
    assert curve(at) >= 0


@given(curves, st.floats(0, 1e4))
def test_order_of_points_does_not_matter(points: dict[int, float], at: float) -> None:
    assert Curve(points.items())(at) == Curve(reversed(list(points.items())))(at)


@given(st.floats(0.1, 10), st.floats(0, 10), st.sets(st.integers(1, 100), min_size=2, max_size=5), st.floats(0, 500))
def test_a_line_is_kept_everywhere(base: float, slope: float, at: set[int], place: float) -> None:
    curve = Curve((x, base + slope * x) for x in at)
    assert curve(place) == pytest.approx(base + slope * place)


@given(curves.filter(lambda points: len(points) > 1))
def test_is_never_optimistic_outside(points: dict[int, float]) -> None:
    curve = Curve(points.items())
    first, last = min(points), max(points)
    for above in (last + 1, 10 * last + 1):
        assert curve(above) >= points[last]
    for below in (0.0, first / 2):
        if below < first:
            share = points[first] * below / first
            assert share * (1 - 1e-9) <= curve(below) <= points[first] * (1 + 1e-9)


def test_between_and_beyond_by_hand() -> None:
    curve = Curve([(10, 1.0), (20, 3.0)])
    assert curve(15) == 2.0
    assert curve(30) == 5.0
    # The line would be negative; proportional is the least there can be.
    assert curve(2) == pytest.approx(0.2)


def test_a_falling_curve_does_not_go_on_falling() -> None:
    curve = Curve([(1, 5.0), (2, 3.0)])
    assert curve(4) == 3.0
    assert curve(0.5) == 5.0


def test_a_single_point_is_taken_for_the_worst() -> None:
    assert Curve([(4, 8.0)])(8) == 16.0
    assert Curve([(4, 8.0)])(1) == 8.0
    assert Curve([(4, 8.0)], flat=True)(100) == 8.0
    assert Curve([(0, 8.0)])(5) == 8.0


@pytest.mark.parametrize(
    ("points", "problem"),
    [
        ([], "at least one point"),
        ([(1, 2.0), (1, 3.0)], "two points at 1"),
        ([(1, -2.0)], "-2"),
        ([(1, float("nan"))], "nan"),
        ([(float("inf"), 1.0)], "inf"),
    ],
)
def test_refuses_what_is_no_curve(points: list[tuple[float, float]], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Curve(points)


def decode(*points: tuple[int, int, float]) -> DecodeTimes:
    return DecodeTimes(DecodePoint(rows=rows, context=context, layer=Timing(ms=ms)) for rows, context, ms in points)


@given(st.integers(1, 8), st.floats(0, 100), st.tuples(*[st.floats(0, 1)] * 3))
def test_decode_is_bilinear_on_a_grid(rows: int, context: float, factors: tuple[float, float, float]) -> None:
    per_row, per_token, per_both = factors

    def ms(rows: float, context: float) -> float:
        return 2 + per_row * rows + per_token * context + per_both * rows * context

    times = decode(*((r, c, ms(r, c)) for r in (1, 3, 8) for c in (0, 40, 100)))
    assert times(rows, context) == pytest.approx(ms(rows, context))


def test_decode_with_one_context_holds_for_all() -> None:
    times = decode((1, 64, 2.0), (4, 64, 5.0))
    assert times(1, 0) == times(1, 4000) == 2.0
    assert times(2, 0) == pytest.approx(3.0)


def test_decode_with_one_number_of_rows_grows_in_proportion() -> None:
    assert decode((1, 0, 2.0), (1, 100, 4.0))(3, 50) == pytest.approx(9.0)


def test_decode_on_a_ragged_grid() -> None:
    times = decode((1, 0, 2.0), (1, 100, 4.0), (2, 50, 6.0))
    assert times(1, 100) == 4.0
    assert times(2, 100) == 6.0


def test_a_chunk_of_one_token_is_a_decode_step() -> None:
    points = [PrefillPoint(tokens=9, layer=Timing(ms=18.0))]
    curve = prefill_curve(points, decode((1, 0, 2.0)))
    assert curve(1) == 2.0
    assert curve(5) == pytest.approx(10.0)
    assert curve(9) == 18.0
    measured = prefill_curve([*points, PrefillPoint(tokens=1, layer=Timing(ms=3.0))], decode((1, 0, 2.0)))
    assert measured(1) == 3.0


def test_head_by_rows() -> None:
    curve = head_curve([HeadPoint(rows=1, head=Timing(ms=1.0)), HeadPoint(rows=3, head=Timing(ms=2.0))])
    assert curve(2) == 1.5
