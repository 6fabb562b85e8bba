"""The paper's testbed, and how each method of EdgeShard's Table IV (arXiv 2405.14371) places layers on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from planner.baselines import cloud_edge_even, cloud_edge_opt, cloud_edge_problem, missing_memory, solo
from planner.cost import CostModel
from planner.errors import Infeasible
from planner.latency import cheapest_route
from planner.pipeline import no_bubbles_rate
from planner.prediction import predict
from planner.problem import Problem, Segment
from planner.profile import LinkProfile
from planner.shortage import shortages
from planner.testbed import load_testbed
from planner.throughput import PipelineSolution, fastest_pipeline
from planner.types import Route

TESTBED = "edgeshard-paper"

Method = Literal["edge-solo", "cloud-edge-even", "cloud-edge-opt", "edgeshard"]
Quantity = Literal["ms_per_token", "tokens_per_s"]
Mark = Literal["calibrated", "semi-predicted", "predicted", "not reproducible", "infeasible"]
PlanFor = Literal["ring", "bottleneck"]
METHODS: tuple[Method, ...] = ("edge-solo", "cloud-edge-even", "cloud-edge-opt", "edgeshard")

_UNBOUNDED = 10**6
"""Micro-batches with which a round's time no longer counts: the rate is that of the bottleneck."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One number of the paper, and under which assumptions we compute ours."""

    model: str
    method: Method
    quantity: Quantity = "tokens_per_s"
    mark: Mark = "predicted"
    paper: float | None = None
    """None: out of memory."""
    micro_batches: int = 1
    rows: int = 1
    plan: PlanFor = "ring"
    note: str = ""


def paper_model(model: str, *, source: str = "", cloud_mbit_per_s: float = 0.0, sessions: int = 0) -> CostModel:
    """The calibrated testbed, with another source, bandwidth between source and cloud, or KV reservation where given.

    All other links have the bandwidth between edge devices, as in the paper.
    """
    testbed = load_testbed(TESTBED, model)
    source = source or testbed.source
    cloud = testbed.profile.devices[-1].name
    bandwidths = {
        frozenset((link.source, link.destination)): link.bandwidth_bytes_per_s for link in testbed.profile.links
    }
    slow_pair = frozenset((testbed.source, cloud))
    slow = cloud_mbit_per_s * 1e6 / 8 or bandwidths[slow_pair]
    fast = next(bandwidth for pair, bandwidth in bandwidths.items() if pair != slow_pair)

    def relinked(link: LinkProfile) -> LinkProfile:
        is_slow = {link.source, link.destination} == {source, cloud}
        return replace(link, bandwidth_bytes_per_s=slow if is_slow else fast)

    profile = replace(testbed.profile, links=tuple(map(relinked, testbed.profile.links)))
    workload = replace(testbed.defaults, sessions=sessions or testbed.defaults.sessions)
    return CostModel(profile, workload, source=source)


def value_of(model: CostModel, cell: Cell, route: Route) -> float:
    """The cell's quantity for a route, whether or not it fits."""
    if cell.quantity == "ms_per_token":
        return model.times(route).round_ms
    return no_bubbles_rate(model.times(route, cell.rows), cell.micro_batches, cell.rows)


def route_of(model: CostModel, cell: Cell) -> Route:
    """Where the method puts the layers. Raises Infeasible where it has to choose and cannot."""
    if cell.method == "edge-solo":
        return solo(model)
    if cell.method == "cloud-edge-even":
        return cloud_edge_even(model)
    if cell.quantity == "ms_per_token":
        return cloud_edge_opt(model) if cell.method == "cloud-edge-opt" else _fastest_answer(model)
    if cell.plan == "bottleneck":
        return _least_bottleneck(model, cell.rows)
    found = _fastest(model, cell.method, (cell.micro_batches, cell.rows))
    return _found(model, None if found is None else found.segments)


def _fastest(model: CostModel, method: Method, fixed: tuple[int, int] | None) -> PipelineSolution | None:
    """Of all devices, or of source and cloud; for a pair of micro-batches and rows, or the best within the sessions."""

    def problem_at(rows: int, sessions: int) -> Problem:
        problem = model.pipeline_problem(rows, max(sessions, model.workload.sessions))
        return cloud_edge_problem(model, problem) if method == "cloud-edge-opt" else problem

    return fastest_pipeline(problem_at, sessions=model.workload.sessions, fixed=fixed)


def _fastest_answer(model: CostModel) -> Route:
    found = cheapest_route(model.latency_problem())
    return _found(model, None if found is None else found.segments)


def _least_bottleneck(model: CostModel, rows: int) -> Route:
    """EdgeShard's own objective, equation 10; of equal bottlenecks the shortest round, to be kind."""
    problem = model.pipeline_problem(rows, model.workload.sessions)
    found = fastest_pipeline(lambda rows, sessions: problem, sessions=1, fixed=(_UNBOUNDED, rows))
    return _found(model, None if found is None else found.segments)


def _found(model: CostModel, segments: Sequence[Segment] | None) -> Route:
    if segments is None:
        raise Infeasible("nothing fits", shortages(model))
    return model.route(segments)


def least_ms_per_token(model: CostModel, method: Method) -> float | None:
    """None where it does not fit."""
    cell = Cell(model=model.profile.model, method=method, quantity="ms_per_token")
    try:
        route = route_of(model, cell)
    except Infeasible:
        return None
    return None if missing_memory(model, route) else value_of(model, cell, route)


def best_tokens_per_s(model: CostModel, method: Method) -> float | None:
    """The best over micro-batches and rows within the sessions; None where it does not fit."""
    if method in ("cloud-edge-opt", "edgeshard"):
        found = _fastest(model, method, None)
        return None if found is None else found.rate_tokens_per_s
    route = solo(model) if method == "edge-solo" else cloud_edge_even(model)
    return None if missing_memory(model, route) else predict(model, route, model.workload.sessions).tokens_per_s
