"""The paper's methods on its testbed; the published errors E7 to E12, which are in what is computed and not in how."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from planner.cost import CostModel
from planner.errors import Infeasible
from planner.latency import cheapest_route
from planner.paper_methods import (
    METHODS,
    Cell,
    best_tokens_per_s,
    least_ms_per_token,
    paper_model,
    route_of,
    value_of,
)
from planner.problem import Ceiling
from planner.profile import PrefillPoint, Timing
from planner.published import algorithm_2_steps, bottleneck_cost
from planner.recost import recost
from planner.types import LayerRange, Route
from tests.fakes.random_pipelines import placements
from tests.fakes.random_problems import random_problem

SEVEN, THIRTEEN, SEVENTY = "llama2-7b", "llama2-13b", "llama2-70b"


def lengths(route: Route) -> list[tuple[str, int]]:
    return [(stage.device, len(stage.layers)) for stage in route.stages]


def test_e7_the_least_of_the_times_is_not_the_bottleneck() -> None:
    """Equation 10 minimises min T_j as written: a plan with one quick stage, whatever the others take."""
    worse = feasible = 0
    for seed in range(60):
        problem = random_problem(seed, max_layers=6, max_devices=4, all_different=True, ends_at_source=False)
        allowed = [each.segments for each in placements(problem) if problem.allows(each.segments)]
        allowed = [segments for segments in allowed if len(segments) > 1]
        if not allowed:
            continue
        feasible += 1
        as_written = min(allowed, key=lambda segments: min(map(problem.segment_cost, segments)))
        best = min(bottleneck_cost(problem, segments) for segments in allowed)
        worse += bottleneck_cost(problem, as_written) > best * (1 + 1e-9)
    assert feasible >= 20
    assert worse >= feasible // 2


@pytest.mark.parametrize("model", [SEVEN, THIRTEEN])
def test_e8_weights_are_not_all_that_takes_memory(model: str) -> None:
    """Req_i counts weights; with the KV cache of 16 sequences the plan for them no longer fits, and ours does."""
    cost = paper_model(model, sessions=16)
    problem = cost.latency_problem()
    with_cache = cost.memory_parts(16).layer
    cache_bytes = with_cache - cost.memory_parts(15).layer
    assert cache_bytes > 0
    blind = cheapest_route(replace(problem, unit_bytes=np.full_like(problem.unit_bytes, with_cache - 16 * cache_bytes)))
    ours = cheapest_route(problem)
    assert blind is not None
    assert ours is not None
    assert not problem.allows(blind.segments)
    assert problem.allows(ours.segments)


@pytest.mark.parametrize(
    ("model", "micro_batches", "lost"),
    [
        (SEVEN, 2, 2.06),
        (SEVEN, 4, 1.59),
        (SEVEN, 8, 1.25),
        (THIRTEEN, 2, 1.28),
        (THIRTEEN, 4, 1.24),
        (THIRTEEN, 8, 1.13),
    ],
)
def test_e9_the_ring_counts_and_the_bottleneck_alone_loses(model: str, micro_batches: int, lost: float) -> None:
    """Fewer micro-batches than stages: the rate is m / L, and every stage that shortens the bottleneck lengthens L."""
    cost = paper_model(model)
    rates = []
    for plan in ("ring", "bottleneck"):
        cell = Cell(model=model, method="edgeshard", micro_batches=micro_batches, plan=plan)
        rates.append(value_of(cost, cell, route_of(cost, cell)))
    assert rates[0] / rates[1] == pytest.approx(lost, abs=0.006)


def with_slow_prompts(cost: CostModel, device: str, factor: float) -> CostModel:
    """The same cluster, whose `device` takes `factor` times as long for a prompt."""
    devices = tuple(
        replace(
            each,
            prefill=tuple(
                PrefillPoint(tokens=point.tokens, layer=Timing(ms=point.layer.ms * factor)) for point in each.prefill
            ),
        )
        if each.name == device
        else each
        for each in cost.profile.devices
    )
    workload = replace(cost.workload, prompt=32, tokens=96)
    return CostModel(replace(cost.profile, devices=devices), workload, source=cost.source)


def test_e10_prefill_and_decode_do_not_weigh_the_same() -> None:
    """A plan for their plain average shuns a device that is slow once per answer and quick 95 times."""
    cost = with_slow_prompts(paper_model(SEVEN), "cloud-0", 40.0)
    problem, prompt, tokens = cost.latency_problem(), cost.workload.prompt, cost.workload.tokens
    first, decode = (
        np.array([[ms(names[0], LayerRange(i, i + 1)) for i in range(cost.spec.num_layers)] for names in cost.classes])
        for ms in (cost.prefill_ms, cost.decode_ms)
    )
    right = (first + (tokens - 1) * decode) / tokens
    assert problem.unit_cost + problem.stage_cost[:, None] == pytest.approx(right)
    assert problem.boundary_bytes[0] == pytest.approx((prompt + tokens - 1) / tokens * cost.hidden_bytes)
    averaged = cheapest_route(replace(problem, unit_cost=(first + decode) / 2))
    ours = cheapest_route(problem)
    assert averaged is not None
    assert ours is not None
    assert problem.cost_of(averaged.segments) > 1.2 * ours.cost


def test_e11_a_token_travels_back_and_not_its_logits() -> None:
    cost = paper_model(SEVEN)
    assert cost.return_ms("cloud-0") == pytest.approx(0.032)
    problem = cost.latency_problem()
    logits_bytes = 4.0 * cost.spec.vocab_size
    to_source = np.array([0.0, *problem.hop_cost_per_byte[1:, 0]])
    assert logits_bytes * to_source[-1] == pytest.approx(1024, rel=0.01)
    as_printed = cheapest_route(replace(problem, return_cost=logits_bytes * to_source))
    ours = cheapest_route(problem)
    assert ours is not None
    assert as_printed is not None
    cloud = next(k for k, names in enumerate(cost.classes) if "cloud-0" in names)
    assert ours.segments[-1].device_class == cloud
    assert as_printed.segments[-1].device_class != cloud
    assert problem.cost_of(as_printed.segments) > ours.cost


def test_e11_a_hop_has_a_latency() -> None:
    """Eight milliseconds per hop, and the relay that saves bandwidth at 10 Mbit/s no longer pays."""
    cost = paper_model(SEVEN, cloud_mbit_per_s=10)
    problem = cost.latency_problem()
    late = replace(problem, hop_cost=problem.hop_cost + 12.0)
    without, ours = cheapest_route(problem), cheapest_route(late)
    assert without is not None
    assert ours is not None
    assert [len(each.segments) for each in (without, ours)] == [3, 2]
    assert late.cost_of(without.segments) > ours.cost


@pytest.mark.parametrize(("model", "steps"), [(SEVEN, 7.5e9), (THIRTEEN, 1.18e10), (SEVENTY, 4.72e10)])
def test_e12_counting_devices_of_a_class_takes_the_sets_away(model: str, steps: float) -> None:
    problem = paper_model(model).latency_problem()
    assert algorithm_2_steps(problem.num_layers, sum(problem.counts)) == pytest.approx(steps, rel=0.01)
    others = [count for k, count in enumerate(problem.counts) if k != problem.source]
    assert problem.num_layers * problem.num_classes * math.prod(count + 1 for count in others) < 25_000
    found = cheapest_route(problem)
    assert found is not None
    assert found.method == "exact"
    assert found.gap < 1e-9


def test_every_method_places_what_it_says() -> None:
    cost = paper_model(SEVEN)
    found = {how: lengths(route_of(cost, Cell(model=SEVEN, method=how, quantity="ms_per_token"))) for how in METHODS}
    assert found == {
        "edge-solo": [("agx-0", 32)],
        "cloud-edge-even": [("agx-0", 16), ("cloud-0", 16)],
        "cloud-edge-opt": [("agx-0", 32)],
        "edgeshard": [("agx-0", 1), ("agx-1", 5), ("cloud-0", 26)],
    }


@pytest.mark.parametrize("model", [SEVEN, THIRTEEN, SEVENTY])
def test_rates_are_those_of_the_best_batch(model: str) -> None:
    cost = paper_model(model)
    for how in METHODS:
        rate = best_tokens_per_s(cost, how)
        cells = [
            Cell(model=model, method=how, micro_batches=m, rows=rows) for m, rows in ((8, 1), (4, 2), (2, 4), (1, 8))
        ]
        try:
            tried = [value_of(cost, cell, route_of(cost, cell)) for cell in cells]
        except Infeasible:
            assert rate is None
            continue
        assert rate is None or rate >= max(tried) * (1 - 1e-9)


@pytest.mark.parametrize("model", [SEVEN, THIRTEEN, SEVENTY])
def test_numbers_are_those_of_a_second_costing(model: str) -> None:
    cost = paper_model(model)
    for how in METHODS:
        ms_per_token = least_ms_per_token(cost, how)
        if ms_per_token is not None:
            route = route_of(cost, Cell(model=model, method=how, quantity="ms_per_token"))
            again = recost(cost.profile, cost.workload, route, cost.workload.sessions)
            assert again.ms_per_token == pytest.approx(ms_per_token, rel=1e-9)


def test_the_slow_link_follows_the_source() -> None:
    cost = paper_model(SEVEN, source="nx-0", cloud_mbit_per_s=2)
    pairs = {(a, b): cost.transfer_ms(a, b) for a, b in (("nx-0", "cloud-0"), ("agx-0", "cloud-0"), ("nx-0", "agx-0"))}
    assert pairs["nx-0", "cloud-0"] == pytest.approx(65.536)
    assert pairs["agx-0", "cloud-0"] == pairs["nx-0", "agx-0"] == pytest.approx(2.62144)


def test_the_least_bottleneck_takes_the_shortest_round_there_is() -> None:
    """By the search that knows ceilings: no plan within the bottleneck has a shorter round."""
    cost = paper_model(SEVEN)
    problem = cost.pipeline_problem(1, cost.workload.sessions)
    times = cost.times(route_of(cost, Cell(model=SEVEN, method="edgeshard", plan="bottleneck")))

    def within(longest: float) -> float | None:
        found = cheapest_route(problem, Ceiling(np.full(problem.num_classes, longest), longest))
        return None if found is None else found.cost

    assert within(times.bottleneck_ms * (1 - 1e-6)) is None
    assert within(times.bottleneck_ms) == pytest.approx(times.round_ms)


def test_kv_cache_is_reserved_for_all_sessions_whatever_circulates() -> None:
    cost = paper_model(SEVEN)
    cell = Cell(model=SEVEN, method="edgeshard", micro_batches=1)
    alone = value_of(cost, cell, route_of(cost, cell))
    assert alone == pytest.approx(1e3 / 75.09, rel=1e-4)
    fewer = paper_model(SEVEN, sessions=1)
    assert value_of(fewer, cell, route_of(fewer, cell)) > alone * 1.03
