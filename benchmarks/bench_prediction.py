"""What a plan predicts against what its execution takes: two models on two to four agents of this machine.

`edgectl profile` measures four agents once per model; plans over the first two, three and four of them are predicted
from that profile and then executed. The planner is told of less memory than there is, so that no device may hold a
whole model; the agents keep theirs, so that they are profiled with as many layers as it takes.

    python benchmarks/bench_prediction.py --out benchmarks/results/prediction.json
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import random_model
from report import write_report

from edgectl.config import load_config
from edgectl.local_cluster import BIN, LocalCluster
from edgectl.local_processes import Processes
from edgectl.plan_measure import Measured, measure_plan
from edgectl.profile_store import load_profile
from planner.baselines import baseline_routes
from planner.cost import CostModel
from planner.latency import cheapest_route
from planner.prediction import Prediction, predict
from planner.profile import ClusterProfile
from planner.types import Allotment, Plan, Quantization, Route, StageCost
from planner.workload import Workload

TARGET_PERCENT = 15.0
AGENTS = (2, 3, 4)


@dataclass(frozen=True)
class Case:
    """A model and how it is run."""

    model: Path
    quantization: Quantization
    memory_limits_mib: tuple[int, ...]
    """What the planner may use of each agent: less than the model takes, and different."""
    context: int
    prompt: int
    tokens: int
    generations: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, default=Path(tempfile.gettempdir()) / "edgectl-bench-models")
    parser.add_argument("--only", choices=("wiki-32l", "random-1.1b"), help="one of the two models")
    parser.add_argument("--agents", type=int, nargs="*", default=list(AGENTS))
    parser.add_argument("--seconds", type=float, default=8.0, help="how long each agent is profiled")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    began_s = time.monotonic()
    rows: list[dict[str, object]] = []
    for case in cases(options.models, options.only):
        with tempfile.TemporaryDirectory() as directory, Processes(Path(directory)) as processes:
            rows += run(case, LocalCluster(Path(directory), processes), options.agents, options.seconds)
    errors = [abs(float(str(row["error %"]))) for row in rows]
    facts: dict[str, object] = {
        "target: prediction within, %": TARGET_PERCENT,
        "worst error, %": max(errors),
        "plans within the target": f"{sum(error <= TARGET_PERCENT for error in errors)} of {len(errors)}",
        "seconds": round(time.monotonic() - began_s),
    }
    write_report("prediction", rows, facts, options.out)


def cases(models: Path, only: str | None) -> list[Case]:
    found = []
    if only != "random-1.1b":
        limits = (44, 44, 36, 36)
        found.append(Case(random_model.BUNDLED, "fp32", limits, context=256, prompt=32, tokens=128, generations=7))
    if only != "wiki-32l":
        limits = (520, 520, 380, 380)
        model = random_model.write(models)
        found.append(Case(model, "int4", limits, context=256, prompt=32, tokens=48, generations=3))
    return found


def run(case: Case, cluster: LocalCluster, agents: Sequence[int], seconds: float) -> list[dict[str, object]]:
    """Profile once, then predict and execute every route that differs from those before."""
    os.environ["EDGE_COORDINATOR__STATE_DIR"] = str(cluster.directory / "state")
    names = [f"device-{number}" for number in range(1, max(agents) + 1)]
    for name in names:
        cluster.add_device(name, case.model.parent, {})
    for name in names:
        cluster.start_device(name)
    profile = measured_profile(case, cluster, seconds)
    rows, seen = [], set()
    for count in agents:
        for name, route, model in routes(case, limited(case, profile, count)):
            stages = " ".join(f"{stage.device}{stage.layers}".replace(", ", "-") for stage in route.stages)
            if stages in seen:
                continue
            seen.add(stages)
            prediction = predict(model, route, sessions=1)
            measured = measure_plan(
                plan_of(case, model, route, prediction),
                load_config(cluster.config, os.environ),
                str(case.model),
                prompt_tokens=case.prompt,
                tokens=case.tokens,
                generations=case.generations,
            )
            rows.append(row_of(case, prediction, measured, agents=count, name=name, stages=stages))
            print(rows[-1], file=sys.stderr)
    return rows


def measured_profile(case: Case, cluster: LocalCluster, seconds: float) -> ClusterProfile:
    path = cluster.directory / "profile.json"
    command: list[str | Path] = [BIN / "edgectl", "profile", "--cluster", cluster.config, "--model", case.model]
    command += ["--quantize", case.quantization, "--quick", "--seconds", str(seconds), "--wait", "60", "--out", path]
    subprocess.run(command, check=True)
    return load_profile(path)


def limited(case: Case, profile: ClusterProfile, count: int) -> ClusterProfile:
    """The first devices, each with as much memory as the case allows."""
    devices = tuple(
        replace(device, memory_bytes=limit << 20)
        for device, limit in zip(profile.devices[:count], case.memory_limits_mib, strict=False)
    )
    names = {device.name for device in devices}
    links = tuple(link for link in profile.links if {link.source, link.destination} <= names)
    return replace(profile, devices=devices, links=links)


def routes(case: Case, profile: ClusterProfile) -> list[tuple[str, Route, CostModel]]:
    """Those that fit: even, in proportion to memory, and the one with the least latency."""
    workload = Workload(
        quantization=profile.quantization,
        block_size=profile.block_size,
        boundary=profile.boundary,
        codec="fp16",
        prompt=case.prompt,
        tokens=case.tokens,
        context=case.context,
    )
    model = CostModel(profile, workload)
    baselines = baseline_routes(model)
    named: list[tuple[str, object]] = [(name, baselines[name]) for name in ("even", "memory-proportional")]
    solution = cheapest_route(model.latency_problem())
    if solution is not None:
        named.append(("latency", model.route(solution.segments)))
    return [(name, route, model) for name, route in named if isinstance(route, Route)]


def plan_of(case: Case, model: CostModel, route: Route, prediction: Prediction) -> Plan:
    work = model.workload
    return Plan(
        model=case.model.name,
        quantization=work.quantization,
        block_size=work.block_size,
        boundary=work.boundary,
        codec=work.codec,
        context=work.context,
        routes=(replace(route, micro_batches=1, rows=1),),
        allotments=tuple(
            Allotment(stage.device, (stage.layers,), 1, stage.memory_bytes, stage.memory_available_bytes)
            for stage in prediction.stages
        ),
        predicted={"ms_per_token": prediction.ms_per_token},
        costs=tuple(StageCost(stage.compute_ms, stage.hop_ms) for stage in prediction.stages),
    )


def row_of(
    case: Case, prediction: Prediction, measured: Measured, *, agents: int, name: str, stages: str
) -> dict[str, object]:
    expected_ms, taken_ms = prediction.ms_per_token, measured.ms_per_token
    first_ms, first_taken_ms = prediction.time_to_first_token_ms, measured.time_to_first_token_ms
    return {
        "model": case.model.name,
        "agents": agents,
        "plan": name,
        "stages": stages,
        "predicted ms/token": expected_ms,
        "measured ms/token": taken_ms,
        "error %": round(100 * (expected_ms / taken_ms - 1), 2),
        "predicted ttft ms": first_ms,
        "measured ttft ms": first_taken_ms,
        "ttft error %": round(100 * (first_ms / first_taken_ms - 1), 2),
        "spread %": round(100 * (max(measured.generations_ms) / min(measured.generations_ms) - 1), 2),
        "predicted compute ms": " ".join(f"{stage.compute_ms:.3f}" for stage in prediction.stages),
        "measured compute ms": " ".join(_shown(stage.compute_ms) for stage in measured.stages),
        "predicted hop ms": " ".join(f"{stage.hop_ms:.3f}" for stage in prediction.stages),
        "measured hop ms": " ".join(_shown(stage.hop_ms) for stage in measured.stages),
        "measured wait ms": " ".join(_shown(stage.wait_ms) for stage in measured.stages),
    }


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    main()
