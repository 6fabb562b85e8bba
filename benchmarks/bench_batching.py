"""Many sessions on two agents: their rate against one process, what a long prompt costs, and whether tokens change.

`rate`: 8 sessions in m micro-batches of mu rows through two agents, against one process that runs as many rows per run
on the same cores, in turns. `prompt`: 8 sessions, one of which sends 1,500 tokens. `tokens`: 100 sessions, each alone
and among 8 others.

    python benchmarks/bench_batching.py rate prompt tokens --quantize int4 fp32 --out benchmarks/results/batching.json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import random_model
from direct_agents import DirectAgents, Heard, OneProcess, load_request
from report import this_run, write_report

from agent.wire.messages import OpenSession, Sampling
from edgectl.local_processes import Processes
from edgectl.session_rate import steady_tokens_per_s

BUNDLED = Path(__file__).resolve().parents[1] / "examples" / "models" / "wiki-32l"
SHAPES = ((1, 8), (2, 4))
"""(micro-batches, rows of each)"""
SESSIONS = 8
PROMPT_TOKENS = 8
"""One chunk: a session decodes while others are still prefilled, and all of them are to decode together for long."""
LONG_PROMPT_TOKENS = 1500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="+", choices=("rate", "prompt", "tokens"))
    parser.add_argument("--models", type=Path, default=Path(tempfile.gettempdir()) / "edgectl-bench-models")
    parser.add_argument("--quantize", nargs="+", default=["int4"])
    parser.add_argument("--layers", type=int, default=22, help="fewer than 22 load faster and cost more per layer")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=8, help="at most, of `rate`")
    parser.add_argument("--seconds", type=float, default=120.0, help="after which no round begins any more")
    parser.add_argument("--sessions", type=int, default=100, help="of `tokens`")
    parser.add_argument("--shape", nargs=2, type=int, action="append", help="micro-batches and rows")
    parser.add_argument("--out", type=Path, help="results of other runs in this file are kept")
    parser.add_argument("--one-process", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.shape = [tuple(shape) for shape in options.shape or SHAPES]
    if options.one_process:
        one_process(options)
        return
    rows: list[dict[str, object]] = []
    if "tokens" in options.what:
        rows.append(asyncio.run(compare_tokens(options)))
    for quantization in options.quantize:
        for shape in options.shape:
            if "rate" in options.what:
                rows.append(asyncio.run(compare_rates(options, quantization, shape)))
            if "prompt" in options.what:
                rows.append(asyncio.run(send_long_prompt(options, quantization, shape)))
    report(rows, options)


def model_of(options: argparse.Namespace) -> Path:
    """TinyLlama's shape. Its head takes about as long as a layer and a half: the first agent has a layer more."""
    return random_model.write(options.models, layers=options.layers if options.layers < 22 else None)


def sessions(count: int, tokens: int, micro_batches: int, *, prefix: str) -> list[OpenSession]:
    return [
        OpenSession(
            f"{prefix}-{number}",
            number % micro_batches,
            tuple(range(100 + number, 100 + number + PROMPT_TOKENS)),
            tokens,
            Sampling(temperature=0.0),
        )
        for number in range(count)
    ]


@asynccontextmanager
async def agents_on(
    model: Path, quantization: Any, shape: tuple[int, int], *, layers: int, cut: int, context: int
) -> AsyncIterator[DirectAgents]:
    """Two agents. With one micro-batch they take turns on the cores, with more each has its own."""
    cores = len(os.sched_getaffinity(0))
    threads = [cores if shape[0] == 1 else max(1, cores // 2)] * 2
    load = load_request(model, quantization, slots=shape[0] * shape[1], context=context, num_layers=layers)
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        processes = stack.enter_context(Processes(directory))
        agents = DirectAgents(directory, processes, model, threads)
        await agents.start(load, [cut], layers)
        stack.push_async_callback(agents.stop)
        await agents.open_micro_batches(*shape)
        yield agents


# --- rate ---


async def compare_rates(options: argparse.Namespace, quantization: str, shape: tuple[int, int]) -> dict[str, object]:
    model = model_of(options)
    alone = subprocess.Popen(
        [sys.executable, *sys.argv, "--one-process", quantization, *map(str, shape)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert alone.stdin is not None
    assert alone.stdout is not None
    alone.stdout.readline()
    one: list[float] = []
    two: list[float] = []
    async with agents_on(
        model, quantization, shape, layers=options.layers, cut=options.layers // 2 + 1, context=512
    ) as agents:
        began_s = time.monotonic()
        for number in range(options.rounds + 1):
            if one and time.monotonic() - began_s > options.seconds:
                break
            alone.stdin.write("go\n")
            alone.stdin.flush()
            one_rate = float(alone.stdout.readline())
            opened = sessions(SESSIONS, options.tokens + 2 * SESSIONS, shape[0], prefix=f"r{number}")
            for each in opened:
                await agents.open_session(each)
            await agents.until_ended([each.session for each in opened])
            two_rate = rate_of(agents, opened)
            if number:  # the first round warms up
                one.append(one_rate)
                two.append(two_rate)
                print(f"{quantization} {shape} round {number}: {one_rate:.2f}, {two_rate:.2f}", file=sys.stderr)
    alone.stdin.close()
    alone.wait(30)
    return {
        "what": "rate",
        "quantization": quantization,
        "micro_batches": shape[0],
        "rows": shape[1],
        "layers": options.layers,
        "one_process_tokens_per_s": statistics.median(one),
        "two_agents_tokens_per_s": statistics.median(two),
        # Both sides of a round meet the same machine: a shared host changes by a factor of two within minutes.
        "ratio": statistics.median(ours / theirs for ours, theirs in zip(two, one, strict=True)),
        "ratio_of_fastest_rounds": max(two) / max(one),
        "rounds": [[round(a, 2), round(b, 2)] for a, b in zip(one, two, strict=True)],
        "target": "ratio ≥ 0.9",
    }


def rate_of(heard: Heard, opened: Sequence[OpenSession]) -> float:
    return steady_tokens_per_s([heard.arrivals_s[each.session] for each in opened], skipped=1)


def one_process(options: argparse.Namespace) -> None:
    """A line in, the rate of as many sessions in this process out."""
    quantization, count, rows = options.one_process
    model = model_of(options)
    load = load_request(model, quantization, slots=int(count) * int(rows), context=512, num_layers=options.layers)
    process = OneProcess(load, model, len(os.sched_getaffinity(0)))
    process.open_micro_batches(int(count), int(rows))
    print("ready", flush=True)
    for number, _ in enumerate(sys.stdin):
        opened = sessions(SESSIONS, options.tokens + 2 * SESSIONS, int(count), prefix=f"r{number}")
        process.run(opened)
        print(rate_of(process, opened), flush=True)


# --- a long prompt ---


async def send_long_prompt(options: argparse.Namespace, quantization: str, shape: tuple[int, int]) -> dict[str, object]:
    """Seven sessions decode, the eighth sends its prompt when each of them has `tokens` tokens."""
    model = model_of(options)
    prompt = tuple(random.Random(0).choices(range(3, 8000), k=LONG_PROMPT_TOKENS))
    long = OpenSession("alone", 0, prompt, 1, Sampling(temperature=0.0))
    async with agents_on(
        model, quantization, shape, layers=options.layers, cut=options.layers // 2 + 1, context=2048
    ) as agents:
        warm = sessions(SESSIONS, 3, shape[0], prefix="warm")
        for each in warm:
            await agents.open_session(each)
        await agents.until_ended([each.session for each in warm])
        await agents.open_session(long)
        await agents.until_ended(["alone"])
        others = sessions(SESSIONS - 1, 2000, shape[0], prefix="other")
        for each in others:
            await agents.open_session(each)
        names = [each.session for each in others]
        while min(len(agents.arrivals_s[name]) for name in names) < options.tokens:
            await asyncio.sleep(0.01)
        began = {name: len(agents.arrivals_s[name]) for name in names}
        beside = {**{name: getattr(long, name) for name in long.__struct_fields__}, "session": "beside"}
        await agents.open_session(OpenSession(**{**beside, "micro_batch": (SESSIONS - 1) % shape[0]}))
        await agents.until_ended(["beside"])
        ended = {name: len(agents.arrivals_s[name]) for name in names}
    without = intervals_ms(agents, {name: (2, began[name]) for name in names})
    during = intervals_ms(agents, {name: (began[name], ended[name]) for name in names})
    alone_s = agents.arrivals_s["alone"][0] - agents.opened_s["alone"]
    beside_s = agents.arrivals_s["beside"][0] - agents.opened_s["beside"]
    return {
        "what": "prompt",
        "quantization": quantization,
        "micro_batches": shape[0],
        "rows": shape[1],
        "layers": options.layers,
        "others_p99_ms_without": p99(without),
        "others_p99_ms_beside": p99(during),
        "ratio": p99(during) / p99(without),
        "median_ratio": statistics.median(during) / statistics.median(without),
        "time_to_first_token_ms_alone": 1e3 * alone_s,
        "time_to_first_token_ms_beside": 1e3 * beside_s,
        "time_to_first_token_ratio": beside_s / alone_s,
        "target": "ratio ≤ 2, time_to_first_token_ratio ≤ 3",
    }


def intervals_ms(heard: Heard, spans: dict[str, tuple[int, int]]) -> list[float]:
    """Between tokens of each session, from one index to another."""
    return [
        1e3 * (heard.arrivals_s[name][index] - heard.arrivals_s[name][index - 1])
        for name, (first, last) in spans.items()
        for index in range(first, last)
    ]


def p99(values: Sequence[float]) -> float:
    return sorted(values)[int(0.99 * len(values))]


# --- tokens ---


async def compare_tokens(options: argparse.Namespace) -> dict[str, object]:
    """Each session alone, then all of them in random company: prompts, lengths, sampling and seeds are random."""
    rng = random.Random(4)
    shape = (3, 3)
    wanted = [
        OpenSession(
            f"{number}",
            0,
            tuple(rng.choices(range(3, 4000), k=rng.choice((1, 2, 17, 40, 150)))),
            rng.randint(2, 40),
            Sampling(seed=number, temperature=rng.choice((0.0, 0.7, 1.2)), top_p=0.95, frequency_penalty=0.3),
        )
        for number in range(options.sessions)
    ]
    async with agents_on(BUNDLED, "int8", shape, layers=32, cut=15, context=256) as agents:
        for each in wanted:
            await agents.open_session(renamed(each, "alone", rng.randrange(3)))
            await agents.until_ended([f"alone-{each.session}"])
        free = [number for number in range(3) for _ in range(3)]

        async def beside(each: OpenSession) -> None:
            while not free:
                await asyncio.sleep(0.001)
            number = free.pop(rng.randrange(len(free)))
            await agents.open_session(renamed(each, "beside", number))
            while f"beside-{each.session}" not in agents.ended:
                await asyncio.sleep(0.001)
            free.append(number)

        await asyncio.gather(*(beside(each) for each in wanted))
    same = sum(agents.tokens[f"alone-{e.session}"] == agents.tokens[f"beside-{e.session}"] for e in wanted)
    tokens = sum(len(agents.tokens[f"alone-{e.session}"]) for e in wanted)
    return {"what": "tokens", "sessions": len(wanted), "identical": same, "tokens": tokens, "target": "all identical"}


def renamed(opened: OpenSession, prefix: str, micro_batch: int) -> OpenSession:
    fields = {name: getattr(opened, name) for name in opened.__struct_fields__}
    return OpenSession(**{**fields, "session": f"{prefix}-{opened.session}", "micro_batch": micro_batch})


# --- report ---


def report(rows: list[dict[str, object]], options: argparse.Namespace) -> None:
    """Rows of what was not measured now stay in the file; each row says which run it is of."""
    rows = [{**row, **this_run()} for row in rows]
    key = ("what", "quantization", "micro_batches", "rows", "layers")
    if options.out is not None and options.out.exists():
        measured = {tuple(row.get(name) for name in key) for row in rows}
        old = json.loads(options.out.read_text(encoding="utf-8"))["rows"]
        rows = [*(row for row in old if tuple(row.get(name) for name in key) not in measured), *rows]
    facts = {"model": "random-1.1b", "sessions": SESSIONS, "long_prompt_tokens": LONG_PROMPT_TOKENS}
    write_report(
        "batching", [{"what": row["what"], "ratio": row.get("ratio"), **row} for row in rows], facts, options.out
    )


if __name__ == "__main__":
    main()
