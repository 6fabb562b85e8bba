"""The exact planners on large clusters, one core: python benchmarks/bench_planner.py --out FILE.json

Every row is a kind of cluster, planned over several seeds and memory sizes; times are CPU time of this process, which
is what a core needs, for the median and the worst instance. The gap is the worst one left unproven.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from report import write_report

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from planner.cost import CostModel
from planner.latency import cheapest_route
from planner.problem import Problem, Solution
from planner.testbed import load_testbed
from planner.throughput import PipelineSolution, ProblemAt, fastest_pipeline
from tests.fakes.random_problems import cluster_problem, one_per_device

TIGHT, ROOMY = 1.5, 4.0
"""Memory of the whole cluster over the model's."""
LARGE = (1, *(28,) * 4, *(29,) * 3)
"""200 devices in 8 classes."""

Found = Solution | PipelineSolution | None
Plans = Callable[[int], Iterator[Callable[[], Found]]]
"""What to plan, by seed."""


@dataclass(frozen=True)
class Case:
    name: str
    target_ms: float | None
    plans: Plans
    seeds: int = 5


def routes(counts: tuple[int, ...], *capacities: float, spread: float = 0.0) -> Plans:
    def of(seed: int) -> Iterator[Callable[[], Found]]:
        for capacity in capacities:
            problem = cluster_problem(seed, counts, capacity=capacity)
            if spread:
                problem = every_link_differs(one_per_device(problem), seed, spread)
            yield partial(cheapest_route, problem)

    return of


def paper_testbed(seed: int) -> Iterator[Callable[[], Found]]:
    """The paper's testbed with every link off by up to 20 %: no two devices are alike."""
    for model in ("llama2-7b", "llama2-13b", "llama2-70b"):
        testbed = load_testbed("edgeshard-paper", model)
        exact = CostModel(testbed.profile, testbed.defaults, source=testbed.source).latency_problem()
        problem = every_link_differs(one_per_device(exact), seed, 0.2)
        yield partial(cheapest_route, problem)


def pipelines(counts: tuple[int, ...], fixed: tuple[int, int] | None) -> Plans:
    def of(seed: int) -> Iterator[Callable[[], Found]]:
        for capacity in (TIGHT, ROOMY):
            at = step_at(cluster_problem(seed, counts, capacity=capacity))
            yield partial(fastest_pipeline, at, sessions=16, fixed=fixed)

    return of


def step_at(base: Problem) -> ProblemAt:
    """More rows cost compute a tenth each and links in proportion; a session's cache is a hundredth of a layer."""

    def at(rows: int, sessions: int) -> Problem:
        return replace(
            base,
            unit_cost=base.unit_cost * (1 + 0.1 * (rows - 1)),
            boundary_bytes=base.boundary_bytes * rows,
            unit_bytes=base.unit_bytes + 10 * (sessions - 1),
        )

    return at


def every_link_differs(problem: Problem, seed: int, spread: float) -> Problem:
    factor = 1 + spread * np.random.default_rng(seed).uniform(-1, 1, problem.hop_cost.shape)
    return replace(problem, hop_cost=problem.hop_cost * factor, hop_cost_per_byte=problem.hop_cost_per_byte * factor)


CASES = (
    Case("15 devices, 4 classes: latency", 100, routes((1, 11, 2, 1), TIGHT, ROOMY)),
    Case("8 devices, all different: latency", 500, routes((1,) * 8, TIGHT, ROOMY)),
    Case("12 devices, all different: latency", 10_000, routes((1,) * 12, 1.2, TIGHT, ROOMY)),
    Case("200 devices, 8 classes: latency", 2_000, routes(LARGE, TIGHT, ROOMY, 12.0)),
    Case("15 devices, every link ±20 %: latency", 5_000, routes((1, 11, 2, 1), 1.2, TIGHT, ROOMY, spread=0.2)),
    Case("testbed 7b 13b 70b, every link ±20 %: latency", 5_000, paper_testbed),
    Case("20 devices, all different, tight: latency", None, routes((1,) * 20, 1.2, TIGHT), seeds=3),
    Case("41 devices, 9 classes, tight: latency", None, routes((1, *(5,) * 8), TIGHT), seeds=3),
    Case("15 devices, 4 classes: throughput at (4, 2)", 1_000, pipelines((1, 11, 2, 1), (4, 2))),
    Case("15 devices, 4 classes: throughput, batch auto of 16", 10_000, pipelines((1, 11, 2, 1), None), seeds=3),
    Case("8 devices, all different: throughput at (4, 2)", 3_000, pipelines((1,) * 8, (4, 2))),
)


def measure(case: Case) -> dict[str, object]:
    taken_ms, gaps, exact, nothing = [], [], 0, 0
    for seed in range(case.seeds):
        for plan in case.plans(seed):
            start = time.process_time_ns()
            found = plan()
            taken_ms.append((time.process_time_ns() - start) / 1e6)
            if found is None:
                nothing += 1
                continue
            exact += found.method == "exact"
            gaps.append(found.gap)
    return {
        "case": case.name,
        "instances": len(taken_ms),
        "median ms": statistics.median(taken_ms),
        "worst ms": max(taken_ms),
        "target ms": case.target_ms,
        "proven": exact,
        "worst gap %": 100 * max(gaps, default=0.0),
        "nothing fits": nothing,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the results there as JSON")
    options = parser.parse_args()
    write_report("planner", [measure(case) for case in CASES], {"layers": 80}, options.out)


if __name__ == "__main__":
    main()
