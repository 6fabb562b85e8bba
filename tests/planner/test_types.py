"""The vocabulary refuses what cannot be: empty layer ranges, routes with gaps."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.types import Allotment, LayerRange, Plan, Route, Stage

CUTS = st.sets(st.integers(1, 39), max_size=6).map(lambda inner: [0, *sorted(inner), 40])


@given(st.integers(0, 50), st.integers(1, 50))
def test_a_layer_range_is_half_open(start: int, count: int) -> None:
    layers = LayerRange(start, start + count)
    assert list(layers) == list(range(start, start + count))
    assert len(layers) == count
    assert start in layers
    assert start + count not in layers
    assert str(layers) == f"[{start}, {start + count})"


@pytest.mark.parametrize(("start", "stop"), [(0, 0), (3, 3), (4, 2), (-1, 2)])
def test_an_empty_or_negative_layer_range_is_refused(start: int, stop: int) -> None:
    with pytest.raises(ValueError, match="empty or negative"):
        LayerRange(start, stop)


@given(st.integers(0, 9), st.integers(1, 9), st.integers(0, 9), st.integers(1, 9))
def test_covers_is_subset(a: int, m: int, b: int, n: int) -> None:
    outer, inner = LayerRange(a, a + m), LayerRange(b, b + n)
    assert outer.covers(inner) == (set(inner) <= set(outer))


@given(CUTS)
def test_a_route_covers_every_layer_once(cuts: list[int]) -> None:
    stages = tuple(
        Stage(f"device-{index}", LayerRange(start, stop))
        for index, (start, stop) in enumerate(itertools.pairwise(cuts))
    )
    route = Route(stages)
    assert [layer for stage in route.stages for layer in stage.layers] == list(route.layers)
    assert route.source == "device-0"


@pytest.mark.parametrize(
    "ranges",
    [((1, 4),), ((0, 2), (3, 4)), ((0, 3), (2, 4)), ((2, 4), (0, 2))],
    ids=["does not start at 0", "gap", "overlap", "order"],
)
def test_a_route_with_a_gap_is_refused(ranges: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(ValueError, match="expected"):
        Route(tuple(Stage("device", LayerRange(*each)) for each in ranges))


def test_a_route_without_stages_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Route(())


def test_a_plan_finds_a_devices_allotment() -> None:
    allotment = Allotment("b", (LayerRange(0, 2),), 1, 10, 20)
    plan = Plan("m", "int4", 128, "fp16", "fp16", 64, (Route((Stage("b", LayerRange(0, 2)),)),), (allotment,))
    assert plan.allotment("b") is allotment
    with pytest.raises(KeyError):
        plan.allotment("a")
