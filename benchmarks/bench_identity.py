"""Greedy tokens of three agents against one process: 200 tokens of the bundled model, in fp32 and int4.

python benchmarks/bench_identity.py --out benchmarks/results/identity.json
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from report import write_report

from agent.wire.messages import Sampling
from edgectl.local_cluster import LocalCluster
from edgectl.local_processes import Processes
from edgectl.model_source import describe_model, locate_model
from edgectl.planning import ServingOptions
from edgectl.solo import load_solo
from planner.types import Quantization

MODEL = Path(__file__).resolve().parents[1] / "examples" / "models" / "wiki-32l"
PROMPT = list(range(100, 137))
TOKENS = 200
QUANTIZATIONS: tuple[Quantization, ...] = ("fp32", "int8", "int4")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = []
    for quantization in QUANTIZATIONS:
        with tempfile.TemporaryDirectory() as directory, Processes(Path(directory)) as processes:
            across = three_agents(quantization, LocalCluster(Path(directory), processes))
        alone = asyncio.run(one_process(quantization))
        same = sum(a == b for a, b in zip(across, alone, strict=True))
        rows.append(
            {
                "weights": quantization,
                "tokens": TOKENS,
                "equal": same,
                "identical": across == alone,
                "target": "identical",
            }
        )
    write_report("identity", rows, {"model": MODEL.name, "agents": 3}, options.out)
    if not all(row["identical"] for row in rows):
        sys.exit(1)


def three_agents(quantization: Quantization, cluster: LocalCluster) -> list[int]:
    for name in ("alpha", "beta", "gamma"):
        cluster.add_device(name, MODEL.parent, {})
    cluster.start_coordinator(MODEL, ["--quantize", quantization])
    for name in ("alpha", "beta", "gamma"):
        cluster.start_device(name)
    cluster.wait_until_ready(120)
    body = {"model": MODEL.name, "prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0}
    body |= {"ignore_eos": True, "return_token_ids": True}
    return [token for choice in cluster.stream(body) for token in choice["token_ids"]]


async def one_process(quantization: Quantization) -> list[int]:
    located = locate_model(str(MODEL))
    options = ServingOptions(quantization=quantization)
    engine = load_solo(located, describe_model(located, lambda *_: None), options, lambda *_: None)
    session = await engine.open(PROMPT, TOKENS, Sampling(temperature=0.0), ())
    tokens = [event.token async for event in session]
    engine.close()
    return tokens


if __name__ == "__main__":
    main()
