"""What bubbles cost: four emulated stages of 20 ms, m micro-batches, the three pipelines of `serve --pipeline`.

Four agents as real processes with real frames play the stages; their links take 0.5 ms and 1 Gbit/s. Every mode's rate
stands beside its closed form (`planner/pipeline.py`): mu / max(stage, L / m) without bubbles, m mu / (L + (m - 1) b)
with them. Modes take turns, so a noisy machine hurts all alike; the figures are medians over the rounds.

    python benchmarks/bench_bubbles.py --out benchmarks/results/bubbles.json
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path

from report import write_report

from edgectl.edgeshard_report import company
from edgectl.emulated_cluster import EmulatedCluster, arrivals_s
from edgectl.local_processes import Processes
from edgectl.session_rate import steady_tokens_per_s
from planner.catalog import find_model
from planner.cost import CostModel
from planner.pipeline import PipelineTimes, bubbles_rate, no_bubbles_rate, sequential_rate
from planner.profile import ClusterProfile, DecodePoint, DeviceProfile, HeadPoint, LinkProfile, PrefillPoint, Timing
from planner.types import Allotment, LayerRange, Pipeline, Plan, Route, Stage
from planner.workload import Workload

STAGES = 4
STAGE_MS = 20.0
HEAD_MS = 1e-3
LATENCY_MS = 0.5
BYTES_PER_S = 1e9 / 8
MODEL = "llama2-7b"
MODES: tuple[Pipeline, ...] = ("no-bubbles", "bubbles", "sequential")
SKIPPED_TOKENS = 3
WORK = Workload(quantization="fp32", boundary="fp16", codec="fp16", prompt=1, tokens=96, sessions=8, context=512)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--micro-batches", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=4.0, help="of one mode in one round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, Processes(Path(directory)) as processes:
        cluster = EmulatedCluster(Path(directory), processes, [f"stage-{place}" for place in range(STAGES)])
        rows = asyncio.run(measure(cluster, options))
    facts = {
        "stages": STAGES,
        "stage_ms": STAGE_MS,
        "link_latency_ms": LATENCY_MS,
        "link_bytes_per_s": BYTES_PER_S,
        "seconds": options.seconds,
        "rounds": options.rounds,
        **company(),
    }
    write_report("bubbles", rows, facts, options.out)


async def measure(cluster: EmulatedCluster, options: argparse.Namespace) -> list[dict[str, object]]:
    cluster.start()
    rows = []
    for micro_batches in options.micro_batches:
        plan, times = plan_with(micro_batches, options.rows)
        rates: dict[Pipeline, list[float]] = {mode: [] for mode in MODES}
        for _ in range(options.rounds):
            for mode in MODES:
                rates[mode].append(
                    await tokens_per_s(cluster, plan, mode, expected(times, mode, plan), options.seconds)
                )
        medians = {mode: statistics.median(found) for mode, found in rates.items()}
        formulas = {mode: expected(times, mode, plan) for mode in MODES}
        gain = medians["no-bubbles"] / medians["bubbles"]
        gain_expected = formulas["no-bubbles"] / formulas["bubbles"]
        rows += [
            {
                "micro_batches": micro_batches,
                "rows": options.rows,
                "pipeline": mode,
                "predicted_tokens_per_s": formulas[mode],
                "tokens_per_s": medians[mode],
                "measured / predicted": medians[mode] / formulas[mode],
                "over bubbles": medians[mode] / medians["bubbles"],
                "over bubbles, predicted": formulas[mode] / formulas["bubbles"],
                "rounds_tokens_per_s": rates[mode],
            }
            for mode in MODES
        ]
        print(f"m {micro_batches}: no bubbles over bubbles {gain:.3f}, predicted {gain_expected:.3f}", flush=True)
    return rows


def expected(times: PipelineTimes, mode: Pipeline, plan: Plan) -> float:
    """The closed form of a mode."""
    route = plan.routes[0]
    if mode == "sequential":
        return sequential_rate(times, route.rows)
    return (no_bubbles_rate if mode == "no-bubbles" else bubbles_rate)(times, route.micro_batches, route.rows)


async def tokens_per_s(
    cluster: EmulatedCluster, plan: Plan, mode: Pipeline, predicted_tokens_per_s: float, seconds: float
) -> float:
    """Rate of as many sessions as the plan has rows, while all of them run."""
    route = plan.routes[0]
    sessions = route.micro_batches * route.rows
    tokens = SKIPPED_TOKENS + max(6, round(seconds * predicted_tokens_per_s / sessions))
    async with cluster.serving(plan, PROFILE, mode) as coordinator:
        arrived_s = await asyncio.gather(*(arrivals_s(coordinator, [1], tokens) for _ in range(sessions)))
    if mode != "sequential":
        return steady_tokens_per_s(arrived_s, SKIPPED_TOKENS)
    # One step at a time is always full, and it may serve one session after the other.
    together_s = sorted(arrival_s for session in arrived_s for arrival_s in session)
    return (len(together_s) - 1) / (together_s[-1] - together_s[0])


def plan_with(micro_batches: int, rows: int) -> tuple[Plan, PipelineTimes]:
    """All stages alike, and what the cost model expects of them."""
    names = [device.name for device in PROFILE.devices]
    layers = PROFILE.spec.num_layers // STAGES
    stages = tuple(Stage(name, LayerRange(place * layers, (place + 1) * layers)) for place, name in enumerate(names))
    route = Route(stages, micro_batches=micro_batches, rows=rows)
    plan = Plan(
        model=MODEL,
        quantization=WORK.quantization,
        block_size=WORK.block_size,
        boundary=WORK.boundary,
        codec=WORK.codec,
        context=WORK.context,
        routes=(route,),
        allotments=tuple(Allotment(stage.device, (stage.layers,), micro_batches * rows, 0, 0) for stage in stages),
    )
    return plan, CostModel(PROFILE, WORK).times(route, rows)


def make_profile(names: Sequence[str]) -> ClusterProfile:
    """Devices that take STAGE_MS for their share of the layers, however many rows, and equal links."""
    spec = find_model(MODEL).spec
    layer = Timing(ms=STAGE_MS * len(names) / spec.num_layers)
    return ClusterProfile(
        model=MODEL,
        spec=spec,
        quantization=WORK.quantization,
        block_size=WORK.block_size,
        boundary=WORK.boundary,
        devices=tuple(
            DeviceProfile(
                name=name,
                host=name,
                provider="none",
                memory_bytes=1 << 40,
                decode=tuple(DecodePoint(rows=rows, context=0, layer=layer) for rows in (1, 16)),
                prefill=(PrefillPoint(tokens=1, layer=layer),),
                head=tuple(HeadPoint(rows=rows, head=Timing(ms=HEAD_MS)) for rows in (1, 16)),
                estimated=True,
            )
            for name in names
        ),
        links=tuple(
            LinkProfile(source=a, destination=b, latency_ms=LATENCY_MS, bandwidth_bytes_per_s=BYTES_PER_S)
            for a, b in permutations(names, 2)
        ),
    )


PROFILE = make_profile([f"stage-{place}" for place in range(STAGES)])


if __name__ == "__main__":
    main()
