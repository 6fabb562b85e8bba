"""Measured perplexities as a table for people and as JSON."""

from __future__ import annotations

import math

from edgectl.output import table
from edgectl.quality.collect import Collected, CollectSettings
from rl.quality import QualityRecord


def describe_collected(settings: CollectSettings, collected: Collected) -> str:
    """What was measured on one model, a row per point."""
    rows = [
        (
            str(record.split),
            f"{record.loss:.4g}",
            "-" if record.m is None else f"{record.m:.3g}",
            f"{record.sigma:g}" if record.snr_db is None else f"{record.snr_db:g} dB",
            _number(record.ppl_mean),
            "-" if record.ppl_ci95 is None else f"{record.ppl_ci95:.2f}",
            str(record.not_finite) if record.not_finite else "-",
        )
        for record in collected.records
    ]
    subject = collected.subject
    head = (
        f"{subject.model.name}: {subject.text.tokens} tokens in windows of {subject.window}, "
        f"{settings.runs.count} runs, {settings.channel.granularity} loss, {settings.channel.mitigation}, "
        f"{settings.kind.wire} on the wire"
    )
    return head + "\n" + table(("split", "loss", "m", "noise", "PPL", "±95 %", "no number"), rows)


def found_as_json(settings: CollectSettings, collected: Collected) -> dict[str, object]:
    """The form of `edgectl eval ppl --json`."""
    subject = collected.subject
    return {
        "model": subject.model.name,
        "digest": subject.model.digest,
        "tokens": subject.text.tokens,
        "window": subject.window,
        "records": [_record(settings, record) for record in collected.records],
    }


def _record(settings: CollectSettings, record: QualityRecord) -> dict[str, object]:
    return {
        "split": record.split,
        "loss": record.loss,
        "sigma": record.sigma,
        "m": record.m,
        "snr_db": record.snr_db,
        "granularity": record.granularity,
        "mitigation": settings.channel.mitigation,
        "codec": record.codec,
        "runs": [run if math.isfinite(run) else str(run) for run in record.runs],
        "ppl_mean": record.ppl_mean if math.isfinite(record.ppl_mean) else None,
        "ppl_ci95": record.ppl_ci95,
    }


def _number(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "-"
