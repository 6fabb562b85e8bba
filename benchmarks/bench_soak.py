"""Ten minutes of open-loop load at 80 % of what three agents can: errors, and whether memory grows.

The load comes in parts, and before each a closed loop measures the capacity anew: a shared machine is not equally fast
all the time, and an open loop at 80 % of what it could do before would be an overload now. Resident memory of the
coordinator and of every agent (with its worker) is sampled once a second; its slope over all sessions so far is fitted
by least squares, after a warm-up.

    python benchmarks/bench_soak.py --minutes 10 --out benchmarks/results/soak.json
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import random_model
from report import write_report

from edgectl.load.client import Offer, offer_load
from edgectl.load.connection import Server
from edgectl.load.generator import Lengths, Load
from edgectl.load.stages import between, token_time_of
from edgectl.load.summary import Objectives, Outcome, summary
from edgectl.load.target import look
from edgectl.local_cluster import LocalCluster
from edgectl.local_processes import Processes

MOST_MB_PER_1000 = 1.0
DEVICES = ("device-1", "device-2", "device-3")
WARM_UP_SHARE = 0.2
"""Of the samples: allocators grow to their size first."""
MB = 1e6
SAMPLE_S = 1.0
FITTED_BLOCKS = 20
"""The slope's error is taken from so many means: samples a second apart are not independent."""


@dataclass
class Sampler:
    """Resident bytes of every process over time, and how many sessions were over."""

    groups: dict[str, list[psutil.Process]]
    over: int = 0
    rows: list[tuple[int, dict[str, int]]] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def counting(self) -> Callable[[int, int], None]:
        """What a load tells its progress to; counts on from the loads before it."""
        before = self.over

        def progress(over: int, _: int) -> None:
            self.over = before + over

        return progress

    def run(self) -> None:
        while not self.stop.wait(SAMPLE_S):
            self.rows.append((self.over, {name: resident_bytes(group) for name, group in self.groups.items()}))

    @contextlib.contextmanager
    def sampling(self) -> Iterator[None]:
        thread = threading.Thread(target=self.run)
        thread.start()
        try:
            yield
        finally:
            self.stop.set()
            thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--parts", type=int, default=5, help="each after a measurement of the capacity")
    parser.add_argument("--share", type=float, default=0.8, help="of the capacity that is offered")
    parser.add_argument("--capacity-seconds", type=float, default=15.0)
    parser.add_argument("--sessions", type=int, default=8, help="at a time")
    parser.add_argument("--cancel-share", type=float, default=0.02)
    parser.add_argument("--model", type=Path, default=random_model.BUNDLED)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, Processes(Path(directory)) as processes:
        cluster = LocalCluster(Path(directory), processes)
        for name in DEVICES:
            cluster.add_device(name, options.model.parent, {"threads": 1, "memory_limit": "1 GiB"})
        cluster.start_coordinator(options.model, ["--sessions", str(options.sessions), "--context", "256"])
        for name in DEVICES:
            cluster.start_device(name)
        cluster.wait_until_ready(300)
        soak(cluster, options)


def soak(cluster: LocalCluster, options: argparse.Namespace) -> None:
    sampler = Sampler(groups_of())
    began = {name: resident_bytes(group) for name, group in sampler.groups.items()}
    first = look(cluster.url, None)
    parts, outcomes = [], []
    with sampler.sampling():
        capacity = capacity_per_s(cluster, options, sampler)
        for number in range(options.parts):
            seen = offered_part(cluster, options, number, capacity, sampler)
            after = capacity_per_s(cluster, options, sampler)
            parts.append(part_row(number, capacity, after, seen, options.share))
            print(parts[-1], flush=True)
            outcomes += [replace(outcome, number=len(outcomes) + at) for at, outcome in enumerate(seen)]
            capacity = after
    cluster.processes.check()
    every: dict[str, Any] = summary(outcomes, 0, Objectives())
    added = between(first.totals, look(cluster.url, None).totals)
    rows = [memory_row(name, began[name], sampler.rows) for name in sampler.groups]
    facts: dict[str, object] = {
        "minutes of open loop": options.minutes,
        "offered share of the capacity": options.share,
        **{f"sessions {end}": count for end, count in every["sessions"].items() if end != "warm_up"},
        "problems": every["problems"],
        "time_to_first_token_ms": every["time_to_first_token_ms"],
        "ms_per_token": every["ms_per_token"],
        "end_to_end_ms": every["end_to_end_ms"],
        "token_time": token_time_of(added),
        "sessions that serve was asked to have room for": options.sessions,
        "parts": parts,
        "sessions over, those of the capacity among them": sampler.over,
        "worst growth, MB per 1,000 sessions": max(float(str(row["MB per 1,000"])) for row in rows),
        "target: no error, MB per 1,000 sessions at most": MOST_MB_PER_1000,
    }
    write_report("soak", rows, facts, options.out)


def offered_part(
    cluster: LocalCluster, options: argparse.Namespace, number: int, capacity: float, sampler: Sampler
) -> list[Outcome]:
    """One part of the open loop, with sessions of its own."""
    offer = Offer(
        load=load(options, rate_per_s=options.share * capacity, seed=number),
        model=look(cluster.url, None).model,
        seconds=60 * options.minutes / options.parts,
    )
    return asyncio.run(offer_load(Server.of_url(cluster.url), offer, sampler.counting()))


def part_row(number: int, before: float, after: float, seen: list[Outcome], share: float) -> dict[str, object]:
    found: dict[str, Any] = summary(seen, 0, Objectives())
    sessions = found["sessions"]
    return {
        "part": number,
        "capacity before, sessions/s": round(before, 2),
        "capacity after, sessions/s": round(after, 2),
        "offered, sessions/s": round(share * before, 2),
        **{end: sessions[end] for end in ("offered", "completed", "cancelled", "refused", "failed", "short")},
        "tokens_per_s": found["tokens_per_s"],
        "p99 time to first token ms": found["time_to_first_token_ms"]["p99"],
        "p99 ms per token": found["ms_per_token"]["p99"],
        # What was offered was more than the machine could do in the end: other work took it.
        "disturbed": share * before > after,
    }


def load(options: argparse.Namespace, **loop: Any) -> Load:
    """Short sessions of many lengths: it is their number that memory might grow with."""
    return Load(
        prompt=Lengths.parse("uniform:8:64"),
        output=Lengths.parse("lognormal:16:0.6"),
        context=256,
        cancel_share=options.cancel_share,
        **loop,
    )


def capacity_per_s(cluster: LocalCluster, options: argparse.Namespace, sampler: Sampler) -> float:
    """Sessions per second that are over while all rows are kept busy, after the first tenth of the time."""
    offer = Offer(
        load=load(options, concurrency=2 * options.sessions),
        model=look(cluster.url, None).model,
        seconds=options.capacity_seconds,
    )
    outcomes = asyncio.run(offer_load(Server.of_url(cluster.url), offer, sampler.counting()))
    begin_s, end_s = outcomes[0].due_s, max(outcome.due_s for outcome in outcomes)
    inner = [begin_s + share * (end_s - begin_s) for share in (0.1, 1.0)]
    return sum(inner[0] <= outcome.ended_s < inner[1] for outcome in outcomes) / (inner[1] - inner[0])


def groups_of() -> dict[str, list[psutil.Process]]:
    """Our children by what they are; an agent's worker belongs to it."""
    groups = {}
    for child in psutil.Process(os.getpid()).children():
        words = child.cmdline()
        name = next((device for device in DEVICES if any(word.endswith(f"{device}.toml") for word in words)), None)
        if name is None and "serve" in words:
            name = "coordinator"
        if name is not None:
            groups[name] = [child, *child.children(recursive=True)]
    return dict(sorted(groups.items()))


def resident_bytes(group: Sequence[psutil.Process]) -> int:
    return sum(process.memory_info().rss for process in group)


def memory_row(name: str, began_bytes: int, samples: Sequence[tuple[int, dict[str, int]]]) -> dict[str, object]:
    kept = samples[int(WARM_UP_SHARE * len(samples)) :]
    sessions = np.array([over for over, _ in kept]) / 1e3
    resident_mb = np.array([resident[name] for _, resident in kept]) / MB
    slope, error = fitted(sessions, resident_mb)
    return {
        "process": name,
        "MB at begin": round(began_bytes / MB, 2),
        "MB after warm-up": round(float(resident_mb[0]), 2),
        "MB at end": round(float(resident_mb[-1]), 2),
        "most MB": round(max(resident[name] for _, resident in samples) / MB, 2),
        "MB per 1,000": round(slope, 4),
        "standard error": round(error, 4),
    }


def fitted(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Slope of the line of least squares and its standard error, from means of blocks of samples."""
    blocks = min(FITTED_BLOCKS, len(x))
    xs, ys = (np.array([part.mean() for part in np.array_split(values, blocks)]) for values in (x, y))
    off = xs - xs.mean()
    square = float((off**2).sum())
    if blocks < 3 or square == 0:
        return 0.0, float("nan")
    slope = float((off * (ys - ys.mean())).sum()) / square
    residual = ys - ys.mean() - slope * off
    return slope, float(np.sqrt((residual**2).sum() / (blocks - 2) / square))


if __name__ == "__main__":
    main()
