"""`edgectl plan --verify`: the plan solved again by a MILP solver and costed again by an independent function.

`milp` shares no search with `latency` and `bottleneck`, `recost` no arithmetic with `cost`. A difference is a bug of
ours and ends the command with an error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np

from planner.answer import Answer
from planner.milp import cheapest_by_milp
from planner.pipeline import no_bubbles_rate
from planner.placement import without_dead_ends
from planner.problem import Ceiling, Problem, Solution
from planner.recost import recost
from planner.replicas import copy_problem
from planner.subproblem import limited

TOLERANCE = 1e-6
"""Relative. Costing agrees to 1e-12; HiGHS stops at 1e-6 of its own."""
MOST_SETS = 40
"""Sets of devices of less idle power that are solved one by one for energy."""


@dataclass(frozen=True, slots=True)
class Check:
    """One number, twice."""

    what: str
    ours: float
    theirs: float

    @property
    def agrees(self) -> bool:
        if math.isinf(self.ours) or math.isinf(self.theirs):
            return self.ours == self.theirs
        return abs(self.ours - self.theirs) <= TOLERANCE * max(abs(self.ours), abs(self.theirs), 1e-9)


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What was compared, and what could not be."""

    checks: tuple[Check, ...]
    claims: tuple[tuple[str, bool], ...]
    """Sentences that must be true."""
    unchecked: tuple[str, ...] = ()

    @property
    def differences(self) -> tuple[str, ...]:
        wrong = [
            f"{check.what} is {check.ours:.9g}, {check.theirs:.9g} the other way"
            for check in self.checks
            if not check.agrees
        ]
        return (*wrong, *(f"not so: {claim}" for claim, holds in self.claims if not holds))

    @property
    def ok(self) -> bool:
        return not self.differences

    def as_json(self) -> dict[str, object]:
        """What --json adds."""
        return {
            "ok": self.ok,
            "checks": [{"what": check.what, "ours": check.ours, "theirs": check.theirs} for check in self.checks],
            "claims": [{"what": what, "ok": holds} for what, holds in self.claims],
            "unchecked": list(self.unchecked),
        }

    def describe(self) -> str:
        """A line per check."""
        lines = [
            f"verified: {check.what} {check.theirs:.6g}"
            if check.agrees
            else f"DIFFERS: {check.what} {check.ours:.9g}, {check.theirs:.9g} the other way"
            for check in self.checks
        ]
        lines += [f"{'verified' if holds else 'NOT SO'}: {claim}" for claim, holds in self.claims]
        return "\n".join([*lines, *(f"not verified: {what}" for what in self.unchecked)])


def verify_plan(answer: Answer) -> VerifyReport:
    """Both opinions on one answer. Takes seconds for large problems."""
    checks, claims = _costed_again(answer)
    solved = {"latency": _latency, "throughput": _throughput, "energy": _energy}[answer.request.objective](answer)
    return VerifyReport((*checks, *solved.checks), (*claims, *solved.claims), solved.unchecked)


def _costed_again(answer: Answer) -> tuple[list[Check], list[tuple[str, bool]]]:
    route, ours = answer.plan.routes[0], answer.prediction
    theirs = recost(answer.model.profile, answer.model.workload, route, answer.placement.sessions)
    rate = no_bubbles_rate(answer.model.times(route, route.rows), route.micro_batches, route.rows)
    checks = [
        Check("ms per token", ours.ms_per_token, theirs.ms_per_token),
        Check("ms to the first token", ours.time_to_first_token_ms, theirs.time_to_first_token_ms),
        Check("tokens/s", rate, theirs.tokens_per_s),
        Check("ms per token of a request", ours.objective_ms, theirs.objective_ms),
    ]
    if ours.joules_per_token is not None and theirs.joules_per_token is not None:
        checks.append(Check("J per token", ours.joules_per_token, theirs.joules_per_token))
    if len(answer.plan.routes) == 1:
        for stage, held in zip(ours.stages, theirs.memory_bytes, strict=True):
            checks.append(Check(f"bytes on {stage.device}", stage.memory_bytes, held))
    return checks, [("every stage fits in its device's memory", theirs.fits)]


# --- solved again -----------------------------------------------------------------------------------------------------


def _latency(answer: Answer) -> VerifyReport:
    return _bounds(answer, _by_milp(answer.model.latency_problem()), "ms per token of a request")


def _by_milp(problem: Problem, ceiling: Ceiling | None = None) -> Solution | None:
    return cheapest_by_milp(without_dead_ends(problem), ceiling)


def _bounds(answer: Answer, solution: Solution | None, what: str) -> VerifyReport:
    """The solver's optimum lies between our bound and our value, and is our value where we say optimal."""
    cost = solution.cost if solution is not None else math.inf
    if answer.optimal:
        return VerifyReport((Check(f"{what}, by HiGHS", answer.value, cost),), ())
    low, high = answer.lower_bound * (1 - TOLERANCE), answer.value * (1 + TOLERANCE)
    return VerifyReport((), ((f"the optimum by HiGHS, {cost:.6g} {what}, is within our gap", low <= cost <= high),))


def _throughput(answer: Answer) -> VerifyReport:
    """No placement and no batch has a higher rate than our bound.

    A rate above it needs every service below a period and a round below micro-batches periods: the least round under
    that ceiling, by HiGHS, is too long for it. Batches are taken together and split only where that does not tell.
    """
    request, model = answer.request, answer.model
    limit = request.batch or request.workload.sessions
    room = request.batch

    def problem_at(rows: int, sessions: int) -> Problem:
        return model.pipeline_problem(rows, sessions if room is None else room)

    def nothing_faster(copies: int, rows: int, low: int, high: int) -> bool:
        problem = copy_problem(problem_at, copies, rows, low)
        if problem is None:
            return True
        period_ms = answer.lower_bound * copies * rows * (1 - TOLERANCE)
        if _least_round(problem, period_ms, copies) >= high * period_ms:
            return True
        if low == high:
            return False
        middle = (low + high) // 2
        return nothing_faster(copies, rows, low, middle) and nothing_faster(copies, rows, middle + 1, high)

    most = max(model.pipeline_problem(1, 1).counts) if request.replicas else 1
    boxes = [(copies, rows) for copies in range(1, most + 1) for rows in range(1, limit // copies + 1)]
    proven = all(nothing_faster(copies, rows, 1, limit // (copies * rows)) for copies, rows in boxes)
    claim = f"no batch and placement exceeds {1e3 / answer.lower_bound:.6g} tokens/s, by HiGHS"
    return VerifyReport((), ((claim, proven),))


def _least_round(problem: Problem, period_ms: float, copies: int) -> float:
    stage = np.full(problem.num_classes, period_ms)
    stage[problem.source] /= copies
    solution = _by_milp(problem, Ceiling(stage, period_ms))
    return solution.lower_bound if solution is not None else math.inf


def _energy(answer: Answer) -> VerifyReport:
    """Devices that draw more idle power together than ours only cost more: one solution bounds them all. Sets that draw
    less are solved one by one."""
    model, route = answer.model, answer.plan.routes[0]
    watts = model.idle_w_by_class()
    own_w = sum(model.power(name).idle_w for name in {stage.device for stage in route.stages})
    bound = answer.lower_bound * (1 - TOLERANCE)
    solution = _by_milp(model.energy_problem(own_w))
    claims = [
        (
            f"devices of {own_w:g} W idle or more take at least {bound:.6g} J per token, by HiGHS",
            _not_below(solution, bound),
        )
    ]
    unchecked = []
    for number, (idle_w, counts) in enumerate(_lesser_sets(model.energy_problem, watts, own_w)):
        if number == MOST_SETS:
            unchecked.append(f"sets of devices of less idle power beyond the first {MOST_SETS}")
            break
        problem = limited(model.energy_problem(idle_w), counts)
        what = f"{'+'.join(map(str, counts))} devices by class, {idle_w:g} W idle, take no less either"
        claims.append((what, _not_below(_by_milp(problem), bound)))
    return VerifyReport((), tuple(claims), tuple(unchecked))


def _not_below(solution: Solution | None, bound: float) -> bool:
    return solution is None or solution.lower_bound >= bound


def _lesser_sets(
    problem_at: Callable[[float], Problem], watts: np.ndarray[tuple[int], np.dtype[np.float64]], below_w: float
) -> Iterator[tuple[float, tuple[int, ...]]]:
    """Devices per class that draw less than `below_w` together and could hold the model, with their watts."""
    problem = problem_at(0.0)
    inner = int(problem.unit_bytes.min())
    most = [
        min(problem.num_layers, int((problem.memory_bytes[k] - problem.stage_bytes[k]) // inner))
        for k in range(problem.num_classes)
    ]
    choices = [(1,) if k == problem.source else range(count + 1) for k, count in enumerate(problem.counts)]
    for counts in product(*choices):
        idle_w = float(np.dot(counts, watts))
        if idle_w < below_w and sum(n * held for n, held in zip(counts, most, strict=True)) >= problem.num_layers:
            yield idle_w, counts
