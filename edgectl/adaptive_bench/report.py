"""What `edgectl bench adaptive` found, as a table for a person and as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from edgectl.adaptive_bench.bench import Compared, Comparison
from edgectl.adaptive_bench.run import LONGEST_GAP_MEDIANS, LONGEST_GAP_MS
from edgectl.load.report import machine
from edgectl.output import table

HEADER = ("controller", "PPL", "ms/token", "longest gap", "layers on device", "moves", "reward", "same tokens")

PER_RUN = ("policy", "micro_batches")
"""Of what status says of a controller: files and numbers that are gone with the cluster."""


def describe_comparison(found: Comparison) -> str:
    """Rows that ran, and below them every split that stays."""
    trial, channel = found.trial, found.trial.channel
    losses, sigma = [state.loss for state in channel.states], channel.states[0].sigma
    rows = [_cells(row) for row in found.rows]
    layers = max(found.statics)
    statics = "  ".join(
        f"{split}: {_number(quality.ppl)} ({_number(found.static_rewards[split])})"
        for split, quality in found.statics.items()
    )
    return "\n".join(
        [
            f"{trial.model.name}, {trial.tokens} tokens after {len(trial.prompt)}, {trial.codec} on the wire; loss "
            f"{min(losses):.3f} to {max(losses):.3f}, sigma {sigma:g}, concealment {channel.concealment}",
            f"clean perplexity {_number(found.clean.ppl)}; splits that stay, with theirs (and their reward): {statics}",
            "",
            table(HEADER, rows),
            "",
            "PPL: of a fixed text under the schedule the session had. Reward: "
            f"{found.weights.quality:g} x gain over an even draw of the splits that stay + {found.weights.load:g} x "
            f"share of {layers} layers off the device.",
            f"Split {found.best_static} is the best that stays in hindsight: by a trace and a text that no controller "
            "knows.",
        ]
    )


def _cells(row: Compared) -> list[str]:
    name = row.name if row.run is None or row.run.contender.split is None else f"{row.name} {row.run.contender.split}"
    ran = row.run
    times = ["-", "-"] if ran is None else [f"{ran.ms_per_token:.2f}", f"{ran.longest_gap_ms:.1f}"]
    same = "-" if row.same_tokens is None else "yes" if row.same_tokens else "no"
    return [name, _number(row.quality.ppl), *times, f"{row.mean_split:.2f}", str(row.moves), _number(row.reward), same]


def _number(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "no number"


def document(found: Comparison, command: Sequence[str], when: datetime) -> dict[str, Any]:
    """The comparison as JSON; what is no finite number is null."""
    trial = found.trial
    return {
        "benchmark": "edgectl bench adaptive",
        "command": " ".join(command),
        "date": when.date().isoformat(),
        "machine": machine(),
        "model": trial.model.name,
        "prompt_tokens": len(trial.prompt),
        "tokens": trial.tokens,
        "codec": trial.codec,
        "latency_ms": trial.latency_ms,
        "rate": trial.rate,
        "channel": _channel(found),
        "weights": asdict(found.weights),
        "clean_ppl": _finite(found.clean.ppl),
        "static_ppl": {str(split): _finite(quality.ppl) for split, quality in found.statics.items()},
        "static_reward": {str(split): _finite(value) for split, value in found.static_rewards.items()},
        "best_static_in_hindsight": found.best_static,
        "longest_gap_allowed": f"{LONGEST_GAP_MEDIANS:g} medians + {LONGEST_GAP_MS:g} ms",
        "controllers": [_row(row) for row in found.rows],
    }


def _channel(found: Comparison) -> dict[str, Any]:
    channel = found.trial.channel
    losses = [state.loss for state in channel.states]
    shapes = [state.m for state in channel.states if state.m is not None]
    return {
        "states": len(channel.states),
        "coherence_tokens": channel.coherence_tokens,
        "seed": channel.seed,
        "granularity": channel.granularity,
        "concealment": channel.concealment,
        "protection": channel.protection,
        "loss_min_mean_max": [min(losses), sum(losses) / len(losses), max(losses)],
        "m_min_max": [min(shapes), max(shapes)] if shapes else None,
        "sigma_max": max(state.sigma for state in channel.states),
    }


def _row(row: Compared) -> dict[str, Any]:
    found: dict[str, Any] = {
        "controller": row.name,
        "ppl": _finite(row.quality.ppl),
        "ppl_of_segments": [_finite(ppl) for ppl in row.quality.segments],
        "mean_split": row.mean_split,
        "moves": row.moves,
        "reward": _finite(row.reward),
        "same_tokens": row.same_tokens,
    }
    if row.run is not None:
        found |= {
            "split": row.run.contender.split,
            "ms_per_token": row.run.ms_per_token,
            "longest_gap_ms": row.run.longest_gap_ms,
            "is_smooth": row.run.is_smooth,
            "schedule": [list(entry) for entry in row.run.schedule],
            "adaptive": {key: value for key, value in row.run.adaptive.items() if key not in PER_RUN},
        }
    return found


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
