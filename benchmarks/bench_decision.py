"""How long the coordinator takes to decide where a split should be: observe the link, ask the controller, guard rails.

    python benchmarks/bench_decision.py [--out FILE.json] [--rounds N]

The whole of `Adapter`'s decision is timed with its own stopwatch, the one that /metrics shows, in a micro-batch of
sixteen sessions over an emulated fading channel. The policy is a network of the size that is trained (64-64), with nine
moves and a quality table in its card, run by ONNX Runtime; weights are random, since nobody waits for what they say.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from report import write_report

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from edgectl.adaptive.choice import ControllerName
from edgectl.adaptive.controller import Chooser, SubjectModel, load_chooser
from edgectl.adaptive.decision import AdaptiveSettings
from edgectl.adaptive.guards import Limits
from planner.channel import Channel
from rl.channel import fading_channel, m_walk
from rl.export import write_policy
from rl.policy_card import Feature
from tests.fakes.fake_agents import LAYERS, Scene
from tests.fakes.scripted_controller import Scripted, adaptive_scene, control, wide
from tests.fakes.small_policy import random_network, small_card
from tests.fakes.small_quality import small_table

TARGET_MS = 1.0
ROWS = 16
SPLITS = tuple(range(1, LAYERS))
MOVES = tuple(range(-4, 5))
FEATURES = (Feature("loss", 0.0, 0.3), Feature("sigma", 0.0, 10.0), Feature("m", 0.5, 3.0), Feature("split", 1.0, 5.0))


def a_channel() -> Channel:
    rng = np.random.default_rng(1)
    return fading_channel(m_walk(1.5, 64, rng), 64, rng, sigma=5.0, seed=1)


def choosers(directory: Path) -> dict[str, Chooser]:
    """By name, from the files that a person would give."""
    table = small_table(
        lambda split, loss: 50.0 + 100.0 * loss / split, splits=SPLITS, sigmas=(0.0, 5.0), num_layers=LAYERS, digest=""
    ).to_json()
    policy, quality = directory / "policy.onnx", directory / "quality.json"
    card = small_card(num_layers=LAYERS, splits=SPLITS, moves=MOVES, observation=FEATURES, quality=table, digest="")
    write_policy(policy, random_network([len(FEATURES), 64, 64, len(MOVES)], 7), card)
    quality.write_text(table)
    model = SubjectModel("tiny", "", LAYERS)
    kinds: tuple[tuple[ControllerName, Path], ...] = (("policy", policy), ("table", quality), ("planner", quality))
    return {kind: load_chooser(path, kind, model) for kind, path in kinds}


def decide(chooser: Chooser, rounds: int, clock: Callable[[], float]) -> list[float]:
    """Milliseconds of each decision of a full micro-batch; moves are answered at once."""
    scene = adaptive_scene(Scripted(), wide(rows=ROWS), channels={("a", "b"): a_channel()})
    times_ms: list[float] = []
    while len(times_ms) < rounds:
        _fill(scene)
        limits = Limits(interval_tokens=1, dwell_tokens=2)
        control(scene, AdaptiveSettings(chooser.controller, 1000, limits, chooser.price, stopwatch=clock))
        adapter = scene.cluster.adapter
        assert adapter is not None
        for session in list(scene.agents["a"].running):
            before, decisions = adapter.times.sum_s, adapter.times.count
            scene.now += 0.02
            scene.token(session)
            if adapter.times.count > decisions:
                times_ms.append(1e3 * (adapter.times.sum_s - before))
        scene.settle()
    return times_ms


def _fill(scene: Scene) -> None:
    while len(scene.agents["a"].running) < ROWS:
        scene.open(max_tokens=60)
        scene.settle()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=2000)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        for name, chooser in choosers(Path(directory)).items():
            decide(chooser, 50, time.perf_counter)
            times_ms = sorted(decide(chooser, options.rounds, time.perf_counter))
            p50, p99 = statistics.median(times_ms), times_ms[int(0.99 * len(times_ms))]
            # What the decision itself takes of a core, on a machine that others use too.
            cpu_ms = sorted(decide(chooser, options.rounds, time.thread_time))
            rows.append(
                {
                    "controller": name,
                    "sessions": ROWS,
                    "decisions": len(times_ms),
                    "p50_ms": round(p50, 4),
                    "p99_ms": round(p99, 4),
                    "cpu_p50_ms": round(statistics.median(cpu_ms), 4),
                    "cpu_p99_ms": round(cpu_ms[int(0.99 * len(cpu_ms))], 4),
                    "target_ms": TARGET_MS,
                    "ok": p50 <= TARGET_MS,
                }
            )
    write_report("decision", rows, {"channel": "fading, m walks, sigma 5"}, options.out)


if __name__ == "__main__":
    main()
