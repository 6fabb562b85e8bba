"""Every mitigation at equal loss, with the bits it takes: perplexity of the bundled model over a lossy hop.

    python benchmarks/bench_mitigation.py --out benchmarks/results/mitigation.json

WikiText-2's test text in windows of 256 tokens; calibrated on its validation text; mean and 95 % interval over seeds.
Rows that --out has already are kept, so that an interrupted run goes on; with --again all are measured anew. --splits
and --granularity do a part. Packets have 64 bytes: a token of this model (256 bytes in fp16) would fit into one of
Ethernet's. "Sent k times" is every element k times with losses that are independent: what comes is lost with
probability loss^k.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
from report import ROOT, write_report
from scipy.special import stdtrit

from agent.compute import kernels
from agent.compute.calibration import Calibration, Calibrator
from agent.compute.checkpoint import Checkpoint
from agent.compute.damage import damage
from agent.compute.onnx_executor import ExecutorSettings, OnnxExecutor
from agent.compute.onnx_session import SessionSettings
from agent.compute.packets import bits_per_token, token_bits
from agent.compute.perplexity import SentWindows, negative_log_likelihood, perplexity_of, send_windows
from edgectl.quality.text_windows import read_text, windows_of
from planner.channel import Channel, ChannelState, Concealment, Granularity, Protection
from planner.types import Codec, LayerRange

WIKI = ROOT / "examples" / "models" / "wiki-32l"
TEXTS = ROOT / "examples" / "text"
WINDOW = 256
SPLITS = (4, 16)
LOSSES = (0.05, 0.1, 0.2, 0.3)
MAIN_LOSS = 0.1
SEEDS = (1, 2, 3, 4, 5)
PACKET_BYTES = 64


@dataclass(frozen=True)
class Mitigation:
    name: str
    concealment: Concealment = "zero"
    protection: Protection = "none"
    interleaved: bool = False
    codec: Codec = "fp16"
    copies: int = 1

    def channel(self, loss: float, granularity: Granularity, seed: int) -> Channel:
        return Channel(
            (ChannelState(loss=loss**self.copies),),
            seed,
            granularity=granularity,
            packet_bytes=PACKET_BYTES,
            interleaved=self.interleaved,
            concealment=self.concealment,
            protection=self.protection,
        )

    def bits(self, hidden_size: int, granularity: Granularity) -> int:
        return self.copies * bits_per_token(hidden_size, self.codec, self.channel(0.1, granularity, 0))


MITIGATIONS = (
    Mitigation("plain"),
    Mitigation("rescale", "rescale"),
    Mitigation("mean", "mean"),
    Mitigation("previous", "previous"),
    Mitigation("lmmse", "lmmse"),
    Mitigation("repeat strongest", protection="repeat"),
    Mitigation("int8 copy of strongest", protection="int8"),
    Mitigation("repeat strongest, rescale", "rescale", "repeat"),
    Mitigation("repeat strongest, lmmse", "lmmse", "repeat"),
    Mitigation("int8 copy of strongest, lmmse", "lmmse", "int8"),
    Mitigation("int8", codec="int8"),
    Mitigation("int8, lmmse", "lmmse", codec="int8"),
    Mitigation("int8 sent twice", codec="int8", copies=2),
    Mitigation("int8 sent twice, lmmse", "lmmse", codec="int8", copies=2),
    Mitigation("int4", codec="int4"),
    Mitigation("int4, lmmse", "lmmse", codec="int4"),
    Mitigation("int4 sent 3 times, lmmse", "lmmse", codec="int4", copies=3),
)
IN_PACKETS = (
    Mitigation("interleaved", interleaved=True),
    Mitigation("interleaved, lmmse", "lmmse", interleaved=True),
)
AT_EVERY_LOSS = {"plain", "rescale", "lmmse"}
EVERYWHERE = AT_EVERY_LOSS | {
    "mean",
    "previous",
    "repeat strongest, lmmse",
    "int8 sent twice, lmmse",
    "interleaved",
    "interleaved, lmmse",
}


def load(threads: int) -> OnnxExecutor:
    settings = ExecutorSettings(
        resident=(LayerRange(0, 32),),
        slots=1,
        context=WINDOW,
        quantization="fp32",
        boundary="fp16",
        session=SessionSettings(threads=threads),
        cuts=SPLITS,
    )
    return OnnxExecutor.load(Checkpoint.open(WIKI), settings)


def calibration(executor: OnnxExecutor, split: int, tokens: int | None) -> Calibration:
    text = read_text(TEXTS / "wikitext-2-valid.txt")
    found = windows_of(text, WIKI, executor.spec.vocab_size, tokens=tokens, window=WINDOW)
    calibrator = Calibrator(split, executor.spec.hidden_size)
    for ids in found.windows:
        calibrator.add(executor.forward(LayerRange(0, split), executor.embed(ids[None]), 0, [0]))
    return calibrator.result()


def perplexity(executor: OnnxExecutor, sent: SentWindows, channel: Channel | None, known: Calibration) -> float:
    total, rest = 0.0, LayerRange(sent.split, executor.spec.num_layers)
    before = None
    for number, (window, payload) in enumerate(zip(sent.windows, sent.payloads, strict=True)):
        hidden = kernels.unpack(payload, sent.codec, (1, WINDOW, executor.spec.hidden_size))
        if channel is not None:
            damage(hidden[0], channel, sent.split, number * WINDOW, codec=sent.codec, calibration=known, before=before)
            before = hidden[0, -1].copy()
        total += negative_log_likelihood(executor, executor.forward(rest, hidden, 0, [0])[0], window)
    return perplexity_of(total, sent.windows.shape[0] * (WINDOW - 1))


class Bench:
    """One loaded model and the text; what it measured so far."""

    def __init__(self, executor: OnnxExecutor, tokens: int) -> None:
        self._executor = executor
        text = read_text(TEXTS / "wikitext-2-test.txt")
        found = windows_of(text, WIKI, executor.spec.vocab_size, tokens=tokens, window=WINDOW)
        self._windows = found.windows
        self._split = 0

    def at(self, split: int, codec: Codec) -> None:
        """Get ready for a split and a codec; both are kept until another is asked for."""
        if split != self._split:
            self._known = calibration(self._executor, split, None)
            self._sent: dict[Codec, SentWindows] = {}
            self._clean: dict[Codec, float] = {}
            self._split = split
        if codec not in self._sent:
            self._sent[codec] = send_windows(self._executor, self._windows, split, codec)
            self._clean[codec] = perplexity(self._executor, self._sent[codec], None, self._known)

    def row(self, split: int, loss: float, granularity: Granularity, way: Mitigation) -> dict[str, object]:
        self.at(split, way.codec)
        self.at(split, "fp16")
        runs = [
            perplexity(self._executor, self._sent[way.codec], way.channel(loss, granularity, seed), self._known)
            for seed in SEEDS
        ]
        half = float(stdtrit(len(runs) - 1, 0.975)) * statistics.stdev(runs) / len(runs) ** 0.5
        size = self._executor.spec.hidden_size
        bits = way.bits(size, granularity)
        return {
            "split": split,
            "loss": loss,
            "granularity": granularity,
            "mitigation": way.name,
            "codec": way.codec,
            "bits": bits,
            "bits_ratio": round(bits / token_bits(size, "fp16"), 4),
            "ppl": round(statistics.mean(runs), 3),
            "ci95": round(half, 3),
            "increase": round(statistics.mean(runs) - self._clean["fp16"], 3),
            "clean_ppl": round(self._clean[way.codec], 3),
            "runs": [round(run, 4) for run in runs],
        }


def points(splits: list[int], granularities: list[Granularity]) -> Iterator[tuple[int, float, Granularity, Mitigation]]:
    """Everything for elements at the first split and a loss of 0.1; less elsewhere, what matters most first."""
    places = [(split, granularity) for granularity in granularities for split in splits]
    for losses in ((MAIN_LOSS,), tuple(loss for loss in LOSSES if loss != MAIN_LOSS)):
        for split, granularity in places:
            for loss in losses:
                for way in MITIGATIONS + (IN_PACKETS if granularity == "packet" else ()):
                    is_first = (split, granularity, loss) == (SPLITS[0], "element", MAIN_LOSS)
                    if is_first or way.name in (EVERYWHERE if loss == MAIN_LOSS else AT_EVERY_LOSS):
                        yield split, loss, granularity, way


def with_shares(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """Each row's increase as a share of plain erasure's at the same point."""
    plain = {(r["split"], r["loss"], r["granularity"]): r["increase"] for r in rows if r["mitigation"] == "plain"}
    for row in rows:
        if increase := plain.get((row["split"], row["loss"], row["granularity"])):
            row["of_plain"] = round(float(str(row["increase"])) / float(str(increase)), 3)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--splits", type=int, nargs="+", choices=SPLITS, default=list(SPLITS))
    parser.add_argument("--granularity", nargs="+", choices=get_args(Granularity), default=list(get_args(Granularity)))
    parser.add_argument("--seconds", type=float, default=np.inf, help="Stop after this; the next run goes on.")
    parser.add_argument("--again", action="store_true", help="Measure what --out has already, too.")
    options = parser.parse_args()
    kept = json.loads(options.out.read_text()) if options.out and options.out.exists() and not options.again else {}
    rows: list[dict[str, object]] = kept.get("rows", []) if kept.get("tokens") == options.tokens else []
    done = {(row["split"], row["loss"], row["granularity"], row["mitigation"]) for row in rows}
    bench, started_s = Bench(load(options.threads), options.tokens), time.monotonic()
    wanted = [point for point in points(options.splits, options.granularity) if _key(*point) not in done]
    facts = {"model": WIKI.name, "tokens": options.tokens, "seeds": len(SEEDS), "packet_bytes": PACKET_BYTES}
    order = {way.name: number for number, way in enumerate(MITIGATIONS + IN_PACKETS)}
    for left, point in enumerate(wanted):
        if time.monotonic() - started_s > options.seconds:
            break
        rows.append(bench.row(*point))
        rows.sort(key=lambda row: (row["split"], row["granularity"], row["loss"], order[str(row["mitigation"])]))
        silent = io.StringIO() if point is not wanted[-1] else sys.stdout
        with contextlib.redirect_stdout(silent):
            write_report("mitigation", with_shares(rows), {**facts, "points_left": len(wanted) - left - 1}, options.out)


def _key(split: int, loss: float, granularity: Granularity, way: Mitigation) -> tuple[object, ...]:
    return split, loss, granularity, way.name


if __name__ == "__main__":
    main()
