"""Two ways to cost a route, written apart: they must agree on everything."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from planner.cost import CostModel
from planner.pipeline import no_bubbles_rate
from planner.prediction import predict
from planner.problem import Segment
from planner.recost import recost
from planner.types import LayerRange, Route, Stage
from planner.workload import Workload
from tests.fakes.random_profiles import plain_device, plain_profile, random_profile, random_route, random_workload

CLOSE = 1e-9


@pytest.mark.parametrize("seed", range(200))
def test_agrees_with_the_cost_model(seed: int) -> None:
    rng = random.Random(seed)
    profile, workload = random_profile(rng), random_workload(rng)
    ends_at_source = rng.random() < 0.3
    route = random_route(rng, profile, ends_at_source=ends_at_source)
    model = CostModel(profile, workload, privacy="trusted-ends" if ends_at_source else "source-first")
    sessions = rng.randint(1, 8)
    expected = predict(model, route, sessions)
    found = recost(profile, workload, route, sessions)
    assert found.ms_per_token == pytest.approx(expected.ms_per_token, rel=CLOSE)
    assert found.time_to_first_token_ms == pytest.approx(expected.time_to_first_token_ms, rel=CLOSE)
    assert found.objective_ms == pytest.approx(expected.objective_ms, rel=CLOSE)
    if expected.joules_per_token is None:
        assert found.joules_per_token is None
    else:
        assert found.joules_per_token == pytest.approx(expected.joules_per_token, rel=CLOSE)
    assert found.memory_bytes == tuple(stage.memory_bytes for stage in expected.stages)
    assert found.fits == all(stage.memory_bytes <= stage.memory_available_bytes for stage in expected.stages)
    rate = no_bubbles_rate(model.times(route, route.rows), route.micro_batches, route.rows)
    assert found.tokens_per_s == pytest.approx(rate, rel=CLOSE, abs=1e-300)


@pytest.mark.parametrize("seed", range(100))
def test_agrees_with_the_additive_problems(seed: int) -> None:
    rng = random.Random(1000 + seed)
    profile, workload = random_profile(rng), random_workload(rng)
    ends_at_source = rng.random() < 0.3
    route = random_route(rng, profile, ends_at_source=ends_at_source)
    model = CostModel(profile, workload, privacy="trusted-ends" if ends_at_source else "source-first")
    if ends_at_source and route.stages[-1].device != model.source:
        return
    place = {name: index for index, members in enumerate(model.classes) for name in members}
    segments = [Segment(place[stage.device], stage.layers.start, stage.layers.stop) for stage in route.stages]
    found = recost(profile, workload, route, workload.sessions)
    latency = model.latency_problem()
    assert latency.allows(segments) == found.fits
    if not found.fits:
        return
    assert latency.cost_of(segments) == pytest.approx(found.objective_ms, rel=CLOSE)
    step = model.pipeline_problem(route.rows, workload.sessions)
    assert step.cost_of(segments) == pytest.approx(model.times(route, route.rows).round_ms, rel=CLOSE)
    if all(device.power is not None for device in profile.devices):
        idle_w = model.idle_w_by_class()
        together = sum(idle_w[index] for index in {segment.device_class for segment in segments})
        energy = model.energy_problem(float(together)).cost_of(segments)
        assert energy == pytest.approx(found.joules_per_token, rel=CLOSE)


def test_by_hand() -> None:
    """Two devices, prompt 5 in chunks of 4: three tokens, then two, since none goes alone."""
    near = plain_device("near", layer_ms=2.0, stage_ms=0.5, embedding_ms=0.25)
    far = plain_device("far", layer_ms=1.0)
    profile = plain_profile(near, far, num_layers=3)
    workload = Workload(quantization="fp32", codec="fp32", prompt=5, tokens=3, context=64, chunk=4)
    route = Route((Stage("near", LayerRange(0, 1)), Stage("far", LayerRange(1, 3))), micro_batches=2, rows=1)
    found = recost(profile, workload, route, 1)
    hop_ms, back_ms = 0.5 + 1024 / 1e3, 0.5 + 4 / 1e3
    step_ms = (0.5 + 0.25 + 2) + hop_ms + (2 * 1 + 1) + back_ms
    assert found.ms_per_token == pytest.approx(step_ms)
    first_ms = 2 * 0.5 + 5 * (0.25 + 2) + 2 * 0.5 + 5 * 1.024 + 5 * 2 * 1 + 1 + back_ms
    assert found.time_to_first_token_ms == pytest.approx(first_ms)
    assert found.objective_ms == pytest.approx((first_ms + 2 * step_ms) / 3)
    assert found.tokens_per_s == pytest.approx(1e3 * min(2 / step_ms, 1 / 3))
    assert found.joules_per_token is None


def test_a_missing_link_takes_forever() -> None:
    profile = replace(plain_profile(plain_device("a"), plain_device("b")), links=())
    route = Route((Stage("a", LayerRange(0, 2)), Stage("b", LayerRange(2, 6))))
    found = recost(profile, Workload(quantization="fp32"), route, 1)
    assert math.isinf(found.ms_per_token)
    assert found.tokens_per_s == 0
