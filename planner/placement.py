"""One objective, one source: the placement the exact planners return, as routes on named devices.

`answer` chooses among sources and describes what is found here; `advice` asks again for changed problems.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from planner.cost import CostModel
from planner.energy import least_energy
from planner.latency import cheapest_route
from planner.prediction import best_batch
from planner.problem import Problem, Segment, Solution
from planner.replicas import fastest_copies
from planner.throughput import PipelineSolution, ProblemAt, fastest_pipeline
from planner.types import Route
from planner.workload import Objective, Privacy

PROVEN = 1e-9
"""Relative gap up to which a bound is the value: rounding, not search."""

UNITS: dict[Objective, str] = {"latency": "ms per token", "throughput": "ms per token", "energy": "J per token"}
"""Of `Placement.cost`; for throughput of all sessions together, 1000 / rate."""

ENERGY_SEARCHES, ENERGY_SEARCHES_AGAIN = 40, 8
"""After so many the rest is left to the bound: seconds where all links of 15 devices differ. Few sets take so many."""

Change: TypeAlias = Callable[[Problem], Problem]
"""What if: a problem in which something is different."""


@dataclass(frozen=True, slots=True)
class Goal:
    """What is to be best. Raises ValueError for a batch below 1 and for replicas that cannot help."""

    objective: Objective = "latency"
    batch: int | None = None
    """Sessions that have room whatever circulates. None: for throughput the planner chooses how many, at most the
    workload's; for the others it is the workload's."""
    replicas: bool = False
    """Equal copies behind the source's first layers may share the work."""

    def __post_init__(self) -> None:
        if self.batch is not None and self.batch < 1:
            raise ValueError(f"batch must be at least 1, it is {self.batch}")
        if self.replicas and self.objective != "throughput":
            raise ValueError(f"replicas raise throughput; they do nothing for {self.objective}")


@dataclass(frozen=True, slots=True)
class Placement:
    """What the search found, in the unit of its objective."""

    segments: tuple[Segment, ...]
    """Of one copy, by class."""
    routes: tuple[Route, ...]
    """One per copy, with the micro-batches and rows of each."""
    sessions: int
    """Sequences per copy that devices have room for."""
    cost: float
    lower_bound: float
    bound_tokens_per_s: float | None = None
    """With replicas: what copies that differ cannot exceed either."""

    @property
    def gap(self) -> float:
        """Relative distance to the lower bound; 0 for a proven optimum."""
        return max(0.0, self.cost / self.lower_bound - 1) if self.lower_bound > 0 else 0.0

    @property
    def optimal(self) -> bool:
        return self.gap <= PROVEN


def unchanged(problem: Problem) -> Problem:
    return problem


def place(
    model: CostModel, goal: Goal, change: Change = unchanged, *, energy_searches: int = ENERGY_SEARCHES
) -> Placement | None:
    """The best placement, None when nothing fits. Raises BadProfile for energy where a device has no power."""
    if goal.objective == "throughput":
        return _fastest(model, goal, change)
    solution: Solution | None
    if goal.objective == "energy":
        solution = least_energy(
            lambda idle_w: without_dead_ends(change(model.energy_problem(idle_w))),
            model.idle_w_by_class(),
            max_boxes=energy_searches,
        )
    else:
        solution = cheapest_route(change(model.latency_problem()))
    if solution is None:
        return None
    sessions = model.workload.sessions
    route = model.route(solution.segments)
    micro_batches, rows = best_batch(model, route, sessions)
    route = replace(route, micro_batches=micro_batches, rows=rows)
    return Placement(solution.segments, (route,), sessions, solution.cost, min(solution.lower_bound, solution.cost))


def place_again(model: CostModel, goal: Goal, found: Placement, change: Change) -> Placement | None:
    """`place` in a changed world; for throughput with the batch that was chosen before, which is much quicker."""
    if goal.objective != "throughput" or goal.replicas:
        return place(model, goal, change, energy_searches=ENERGY_SEARCHES_AGAIN)
    route = found.routes[0]
    solution = fastest_pipeline(
        _problem_at(model, found.sessions, change),
        sessions=route.micro_batches * route.rows,
        fixed=(route.micro_batches, route.rows),
    )
    return _of_pipeline(model, solution, found.sessions) if solution is not None else None


def without_dead_ends(problem: Problem) -> Problem:
    """The same placements with finite costs of return: a class without a link back to the source has no room for the
    last layer, instead of an endless cost that solvers would calculate with."""
    dead = np.isinf(problem.return_cost)
    if not dead.any():
        return problem
    unit_bytes = problem.unit_bytes.copy()
    unit_bytes[dead, -1] = problem.memory_bytes[dead] + 1
    return replace(problem, return_cost=np.where(dead, 0.0, problem.return_cost), unit_bytes=unit_bytes)


def shares_hosts(model: CostModel) -> bool:
    """Whether two devices are on one machine: their stages then take turns, which the searches do not know."""
    hosts = [device.host for device in model.profile.devices if device.host]
    return len(set(hosts)) < len(hosts)


def _problem_at(model: CostModel, room: int | None, change: Change) -> ProblemAt:
    def problem_at(rows: int, sessions: int) -> Problem:
        return change(model.pipeline_problem(rows, sessions if room is None else room))

    return problem_at


def _fastest(model: CostModel, goal: Goal, change: Change) -> Placement | None:
    limit = goal.batch or model.workload.sessions
    problem_at = _problem_at(model, goal.batch, change)
    if goal.batch is not None and cheapest_route(problem_at(1, limit)) is None:
        return None  # Room for a fixed batch does not depend on how it circulates: one search answers for all.
    if goal.replicas:
        copies = fastest_copies(problem_at, sessions=limit)
        if copies is None:
            return None
        found = _of_pipeline(model, copies.copy, goal.batch)
        found = replace(found, bound_tokens_per_s=copies.bound_tokens_per_s)
        return _with_shared_hosts(model, goal, found, limit) if shares_hosts(model) else found
    solution = fastest_pipeline(problem_at, sessions=limit)
    if solution is None:
        return None
    found = _of_pipeline(model, solution, goal.batch)
    return _with_shared_hosts(model, goal, found, limit) if shares_hosts(model) else found


def _of_pipeline(model: CostModel, solution: PipelineSolution, room: int | None) -> Placement:
    routes = model.routes(solution.segments, solution.copies, solution.micro_batches, solution.rows)
    sessions = solution.micro_batches * solution.rows if room is None else room
    cost, bound = 1e3 / solution.rate_tokens_per_s, 1e3 / solution.upper_bound_tokens_per_s
    return Placement(solution.segments, routes, sessions, cost, min(cost, bound))


def _with_shared_hosts(model: CostModel, goal: Goal, found: Placement, limit: int) -> Placement:
    """Costed with stages of one machine taking turns. The search's bound holds: sharing only slows down.

    The placement of the shortest round is looked at too: where stages take turns it is often the better one.
    """
    room = found.sessions
    tried = [(found.segments, found.routes)]
    shortest = cheapest_route(model.pipeline_problem(1, room))
    if shortest is not None:
        route = model.route(shortest.segments)
        micro_batches, rows = best_batch(model, route, min(room, limit))
        tried.append((shortest.segments, (replace(route, micro_batches=micro_batches, rows=rows),)))
    rates = [tokens_per_s(model, routes) for _, routes in tried]
    # Of equals the shortest round.
    best = len(tried) - 1 if rates[-1] >= rates[0] * (1 - PROVEN) else 0
    segments, routes = tried[best]
    sessions = room if goal.batch is not None else routes[0].micro_batches * routes[0].rows
    cost = 1e3 / rates[best]
    return Placement(segments, routes, sessions, cost, min(found.lower_bound, cost), found.bound_tokens_per_s)


def at_least(model: CostModel, goal: Goal, found: Placement, others: Iterable[object]) -> Placement:
    """The best of a placement and of the routes among `others`, which fit: a search that does not know that stages of
    one machine take turns may have missed what a simple rule hits. The bound stays."""
    if goal.objective != "throughput" or goal.replicas or not shares_hosts(model):
        return found
    kinds = {name: k for k, members in enumerate(model.classes) for name in members}
    for route in others:
        if not isinstance(route, Route) or not _once_each(route, model.privacy):
            continue
        micro_batches, rows = best_batch(model, route, found.sessions)
        batched = replace(route, micro_batches=micro_batches, rows=rows)
        cost = 1e3 / tokens_per_s(model, (batched,))
        if cost < found.cost * (1 - PROVEN):
            segments = tuple(
                Segment(kinds[stage.device], stage.layers.start, stage.layers.stop) for stage in route.stages
            )
            found = Placement(segments, (batched,), found.sessions, cost, min(found.lower_bound, cost))
    return found


def _once_each(route: Route, privacy: Privacy) -> bool:
    """Whether each device has one stretch, but for a source that has to have the end as well."""
    names = [stage.device for stage in route.stages]
    if privacy == "trusted-ends" and len(names) > 1:
        return names.pop() == route.source and len(set(names)) == len(names)
    return len(set(names)) == len(names)


def tokens_per_s(model: CostModel, routes: Sequence[Route]) -> float:
    """Rate without bubbles of equal copies: servers and the source's first segment take turns for all of them.

    For one route it is `pipeline.no_bubbles_rate`.
    """
    first = routes[0]
    busy: defaultdict[str, float] = defaultdict(float)
    slowest_ms = 0.0
    for route in routes:
        times = model.times(route, first.rows)
        for stage, compute_ms in zip(route.stages, times.compute_ms, strict=True):
            busy[model.device(stage.device).host or stage.device] += compute_ms
        slowest_ms = max(slowest_ms, times.round_ms / first.micro_batches, *times.transfer_ms, 0.0)
    return 1e3 * len(routes) * first.rows / max(slowest_ms, *busy.values())
