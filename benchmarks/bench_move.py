"""What a client notices when the split point moves under its running session: the longest gap between two tokens.

Two agents as real processes, joined by an emulated link, run one or several sessions while the split is moved to and
fro. Each session's tokens are compared with those of one process that is cut where the session was, and each gap
with the median of its session: at most 3 medians + 50 ms are to go by.

    python benchmarks/bench_move.py --out benchmarks/results/move.json
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import random_model
from direct_agents import CACHE, DirectAgents, fields_of, load_request
from report import write_report

from agent.compute import kernels
from agent.compute.checkpoint import Checkpoint
from agent.compute.damage import damage
from agent.compute.sampling import sample
from agent.config import AgentConfig
from agent.loader import load_model
from agent.wire.addresses import LinkShape
from agent.wire.messages import Load, OpenSession, Sampling, SplitMoved
from edgectl.local_processes import Processes
from planner.channel import Channel, ChannelState
from planner.types import LayerRange

CHANNEL = Channel((ChannelState(loss=0.1), ChannelState()), seed=7, coherence_tokens=5)
GAP_MEDIANS, GAP_S = 3.0, 0.05
PAUSE_S = 0.3
WARM_TOKENS = 4


@dataclass(frozen=True)
class Link:
    name: str
    bytes_per_s: float
    latency_ms: float


LINKS = (Link("none", 0.0, 0.0), Link("100 Mbit/s, 2 ms", 12.5e6, 2.0), Link("20 Mbit/s, 10 ms", 2.5e6, 10.0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, default=Path(tempfile.gettempdir()) / "edgectl-bench-models")
    parser.add_argument("--model", type=Path, default=random_model.BUNDLED, help="a model directory")
    parser.add_argument("--random", action="store_true", help="a random model of 1.1B parameters instead")
    parser.add_argument("--quantize", default="int8")
    parser.add_argument("--block-size", type=int, default=32)
    parser.add_argument("--splits", type=int, nargs="+", default=[4, 16, 24])
    parser.add_argument("--sessions", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--prompt", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=240)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--links", nargs="+", default=[link.name for link in LINKS])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    model = random_model.write(options.models) if options.random else options.model
    rows: list[dict[str, object]] = []
    for link in LINKS:
        if link.name in options.links:
            rows += asyncio.run(measure(model, link, options))
    facts = {"model": model.name, "quantize": options.quantize, "splits": options.splits, "prompt": options.prompt}
    write_report("move", rows, facts, options.out)


async def measure(model: Path, link: Link, options: argparse.Namespace) -> list[dict[str, object]]:
    """A row per number of sessions."""
    num_layers = Checkpoint.open(model).spec.num_layers
    most = max(options.sessions)
    load = load_request(
        model,
        options.quantize,
        slots=most,
        context=options.context,
        num_layers=num_layers,
        block_size=options.block_size,
    )
    with tempfile.TemporaryDirectory() as directory, Processes(Path(directory)) as processes:
        agents = DirectAgents(Path(directory), processes, model, [1, 1])
        agents.codec = "fp32"
        shapes = {
            name: (LinkShape(peer, link.bytes_per_s, 16384, link.latency_ms),)
            for name, peer in (("device-0", "device-1"), ("device-1", "device-0"))
            if link.bytes_per_s or link.latency_ms
        }
        splits = tuple(sorted(options.splits))
        await agents.start(load, splits[:1], num_layers, split_points=splits, links=shapes, channel=CHANNEL)
        rows = [await run(agents, number, link, load, options) for number in options.sessions]
        await agents.stop()
    whole = Load(**{**fields_of(load), "cuts": splits})
    for row, number in zip(rows, options.sessions, strict=True):
        row["tokens_equal"] = all(
            agents.tokens[opened.session] == offline(model, whole, agents.splits[opened.session], opened)
            for opened in (opening(number, each, options) for each in range(number))
        )
    return rows


def opening(sessions: int, number: int, options: argparse.Namespace) -> OpenSession:
    prompt = tuple((7 * number + 3 * at * at + 11) % 4000 + 2 for at in range(options.prompt))
    return OpenSession(f"{sessions}-{number}", 0, prompt, options.tokens, Sampling(temperature=0.0))


async def run(
    agents: DirectAgents, sessions: int, link: Link, load: Load, options: argparse.Namespace
) -> dict[str, object]:
    """Sessions run to their end while the split goes to and fro."""
    await agents.open_micro_batches(1, sessions)
    agents.moves.clear()
    opened = [opening(sessions, number, options) for number in range(sessions)]
    for each in opened:
        await agents.open_session(each)
    names = [each.session for each in opened]
    await agents.until(lambda: all(len(agents.tokens[name]) > WARM_TOKENS for name in names))
    turns = 0
    while not set(names) <= agents.ended:
        split = options.splits[(turns + 1) % len(options.splits)]
        asked, before = time.monotonic(), len(agents.moves)
        await agents.move_split(0, split)
        turns += 1
        await agents.until(lambda: len(agents.moves) > before or set(names) <= agents.ended)  # noqa: B023
        await asyncio.sleep(max(0.0, PAUSE_S - (time.monotonic() - asked)))
    gaps = [[after - before for before, after in pairwise(agents.arrivals_s[name][WARM_TOKENS:])] for name in names]
    medians = [statistics.median(each) for each in gaps]
    moved = [move for _, move in agents.moves if isinstance(move, SplitMoved) and move.bytes]
    return {
        "link": link.name,
        "sessions": sessions,
        "moves": len(moved),
        "kept": sum(not isinstance(move, SplitMoved) for _, move in agents.moves),
        "kib_per_move": round(statistics.fmean(move.bytes for move in moved) / 1024, 1) if moved else None,
        "ms_per_move": round(1e3 * statistics.median(move.seconds for move in moved), 1) if moved else None,
        "median_ms": round(1e3 * statistics.median(medians), 2),
        "longest_gap_ms": round(1e3 * max(map(max, gaps)), 2),
        "allowed_ms": round(1e3 * (GAP_MEDIANS * min(medians) + GAP_S), 2),
    }


def offline(model: Path, load: Load, schedule: list[tuple[int, int]], opened: OpenSession) -> list[int]:
    """The session's tokens in one process: its chunks and steps, damaged where it was cut."""
    config = AgentConfig(name="one", models_dir=model.parent, cache_dir=CACHE, threads=2, provider="cpu")
    executor = load_model(load, config, "cpu", lambda *_: None).executor
    layers = executor.spec.num_layers

    def feed(tokens: tuple[int, ...], position: int) -> int:
        split = [split for start, split in schedule if start <= position][-1]
        hidden = executor.forward(LayerRange(0, split), executor.embed(np.array([tokens])), 0, [position])
        hidden = kernels.unpack(kernels.pack(hidden, "fp32").data, "fp32", hidden.shape)
        damage(hidden[0], CHANNEL, split, position)
        hidden = executor.forward(LayerRange(split, layers), hidden, 0, [position])
        logits = executor.logits(hidden[:, -1])[0]
        return sample(logits, opened.sampling, position + len(tokens), {}).token

    tokens: list[int] = []
    for start in range(0, len(opened.prompt), 2):
        token = feed(opened.prompt[start : start + 2], start)
    tokens.append(token)
    while len(tokens) < opened.max_tokens:
        tokens.append(feed((tokens[-1],), len(opened.prompt) + len(tokens) - 1))
    executor.close()
    return tokens


if __name__ == "__main__":
    main()
