"""Predictions of whole routes: rates, waits and what a stage shows."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from planner.cost import CostModel
from planner.pipeline import PipelineTimes, no_bubbles_rate
from planner.prediction import best_batch, predict, waits_ms
from planner.problem import Segment
from planner.types import LayerRange, Route, Stage
from planner.workload import Workload
from tests.fakes.random_profiles import (
    plain_device,
    plain_profile,
    random_profile,
    random_route,
    random_workload,
)

WORKLOAD = Workload(quantization="fp32", codec="fp32", prompt=1, tokens=8, context=64)


@pytest.mark.parametrize("seed", range(60))
def test_stages_add_up_and_no_batch_is_better(seed: int) -> None:
    rng = random.Random(seed)
    profile, workload = random_profile(rng), random_workload(rng)
    model, route = CostModel(profile, workload), random_route(rng, profile)
    sessions = rng.randint(1, 12)
    found = predict(model, route, sessions)
    parts = sum(stage.compute_ms + stage.hop_ms for stage in found.stages)
    assert parts == pytest.approx(found.ms_per_token)
    assert found.micro_batches * found.rows <= sessions
    assert [(stage.device, stage.layers) for stage in found.stages] == [(s.device, s.layers) for s in route.stages]
    for rows in range(1, sessions + 1):
        for micro_batches in range(1, sessions // rows + 1):
            rate = no_bubbles_rate(model.times(route, rows), micro_batches, rows)
            assert rate <= found.tokens_per_s * (1 + 1e-9)


def test_one_session_never_waits() -> None:
    model = CostModel(plain_profile(plain_device("a"), plain_device("b")), WORKLOAD)
    found = predict(model, model.route([Segment(0, 0, 1), Segment(1, 1, 6)]), 1)
    assert (found.micro_batches, found.rows) == (1, 1)
    assert [stage.wait_ms for stage in found.stages] == [0, 0]
    assert found.tokens_per_s == pytest.approx(1e3 / found.ms_per_token)


def test_of_equal_batches_the_smallest_is_taken() -> None:
    """Rows cost in proportion here, so nothing beats what keeps the slowest stage busy."""
    model = CostModel(plain_profile(plain_device("a"), plain_device("b")), WORKLOAD)
    route = model.route([Segment(0, 0, 6)])
    assert best_batch(model, route, 8) == (1, 1)


@pytest.mark.parametrize(
    ("times", "micro_batches", "expected"),
    [
        (PipelineTimes((4.0, 2.0), (1.0,), (0.0,), 1.0), 1, (0.0, 0.0)),
        # Three turns of the slowest stage take 12 ms, a round 8.
        (PipelineTimes((4.0, 2.0), (1.0,), (0.0,), 1.0), 3, (4.0, 0.0)),
        (PipelineTimes((2.0, 4.0), (1.0,), (0.0,), 1.0), 3, (0.0, 4.0)),
        (PipelineTimes((1.0, 1.0), (5.0,), (0.0,), 0.0), 2, (0.0, 3.0)),
        (PipelineTimes((3.0, 1.0, 2.0), (0.0, 0.0), (0.0, 0.0), 0.0, ("x", "y", "x")), 2, (4.0, 0.0, 0.0)),
    ],
)
def test_waiting_is_before_the_slowest(times: PipelineTimes, micro_batches: int, expected: tuple[float, ...]) -> None:
    assert waits_ms(times, micro_batches) == pytest.approx(expected)


def test_memory_is_that_of_the_device_for_the_sessions_asked() -> None:
    model = CostModel(plain_profile(plain_device("a"), plain_device("b")), WORKLOAD, privacy="trusted-ends")
    route = model.route([Segment(0, 0, 1), Segment(1, 1, 5), Segment(0, 5, 6)])
    found = predict(model, route, 3)
    assert found.stages[0].memory_bytes == found.stages[2].memory_bytes == model.memory_used_bytes("a", route, 3)
    assert found.stages[1].memory_bytes == model.memory_bytes("b", LayerRange(1, 5), 3)
    assert found.stages[2].hop_ms == 0


def test_what_is_not_a_route_of_this_model_is_refused() -> None:
    model = CostModel(plain_profile(plain_device("a"), plain_device("b")), WORKLOAD)
    short = Route((Stage("a", LayerRange(0, 5)),))
    with pytest.raises(ValueError, match="ends at layer 5, the model has 6"):
        predict(model, short, 1)
    with pytest.raises(ValueError, match="starts at b, the source is a"):
        predict(model, Route((Stage("b", LayerRange(0, 6)),)), 1)
    with pytest.raises(ValueError, match="sessions must be at least 1"):
        predict(model, Route((Stage("a", LayerRange(0, 6)),)), 0)


def test_an_unreachable_device_gives_no_tokens() -> None:
    profile = replace(plain_profile(plain_device("a"), plain_device("b")), links=())
    model = CostModel(profile, WORKLOAD)
    found = predict(model, model.route([Segment(0, 0, 1), Segment(1, 1, 6)]), 4)
    assert found.ms_per_token == found.objective_ms == float("inf")
    assert found.tokens_per_s == 0
    assert [stage.wait_ms for stage in found.stages] == [0, 0]
