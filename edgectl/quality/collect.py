"""From a grid of points to measured perplexities: what is missing in a file is measured and added to it.

`collect` is the whole of `edgectl rl collect`; `edgectl eval ppl` and the studies use `collect_records`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from edgectl.quality.file import Measurement, QualityFile
from edgectl.quality.perplexity import (
    MeasuredText,
    Subject,
    calibrations_of,
    check_calibrated,
    check_splits,
    find_subject,
    load_meter,
)
from edgectl.quality.points import ChannelKind, ModelKind, QualityPoint, Runs, channel_of
from planner.channel import Channel
from rl.quality import QualityRecord, QualityTable

if TYPE_CHECKING:
    from edgectl.config import ClusterConfig

WAIT_S = 15.0
"""How long devices of a cluster that are missing are waited for."""

Progress = Callable[[int, int], None]
"""Called with (runs measured, runs in all)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectSettings:
    """What is to be measured: `points` are made by `points.grid`."""

    model: str
    """Directory, or owner/name on the Hugging Face hub."""
    points: tuple[QualityPoint, ...]
    channel: ChannelKind = field(default_factory=ChannelKind)
    kind: ModelKind = field(default_factory=ModelKind)
    text: MeasuredText = field(default_factory=MeasuredText)
    runs: Runs = field(default_factory=Runs)


@dataclass(frozen=True, slots=True)
class Collected:
    """What was measured, per point in the order in which the points were given."""

    subject: Subject
    records: tuple[QualityRecord, ...]


def collect(
    settings: CollectSettings,
    out: Path | None,
    progress: Progress,
    cluster: ClusterConfig | None = None,
    *,
    wait_s: float = WAIT_S,
) -> QualityTable:
    """Measures what `out` does not have yet and returns the table of all points.

    On this machine, or spread over the agents of `cluster`, which are waited for. Raises ConfigError for settings or a
    file that cannot be used, AgentError and PlannerError for the model, CommandFailure for a cluster without devices,
    and rl.quality.BadQualityTable for points that are no rectangular grid.
    """
    return table_of(collect_records(settings, out, progress, cluster, wait_s=wait_s))


def table_of(collected: Collected) -> QualityTable:
    """Raises rl.quality.BadQualityTable for points that are no rectangular grid."""
    model = collected.subject.model
    return QualityTable(model.name, model.digest, model.spec.num_layers, collected.subject.window, collected.records)


def collect_records(
    settings: CollectSettings,
    out: Path | None,
    progress: Progress,
    cluster: ClusterConfig | None = None,
    *,
    wait_s: float = WAIT_S,
) -> Collected:
    """As `collect`, for points in any arrangement."""
    subject = check_settings(settings)
    wanted = [(point, run) for point in settings.points for run in settings.runs.of(point)]
    with nullcontext() if out is None else QualityFile(out, describe_subject(subject, settings)) as file:
        measured = dict(file.measured) if file is not None else {}
        missing = [each for each in wanted if each not in measured]
        left = set(missing)
        progress(len(wanted) - len(left), len(wanted))

        def add(measurement: Measurement) -> None:
            if file is not None:
                file.add(measurement)
            measured[measurement.point, measurement.run] = measurement.perplexity
            left.discard((measurement.point, measurement.run))
            progress(len(wanted) - len(left), len(wanted))

        if cluster is None:
            _measure_here(subject, settings, missing, add)
        else:
            from edgectl.quality.cluster import measure_on_cluster

            measure_on_cluster(cluster, subject, _channels(subject, settings), missing, add, wait_s=wait_s)
    runs = {
        point: _all_runs([measured[point, run] for run in settings.runs.of(point)], settings)
        for point in settings.points
    }
    return Collected(subject, tuple(_record(point, each, subject, settings) for point, each in runs.items()))


def check_settings(settings: CollectSettings) -> Subject:
    """What is to be measured, before anything is. Raises as `collect` does for settings and the model."""
    subject = find_subject(settings.model, settings.kind, settings.text)
    check_splits(subject, [point.split for point in settings.points])
    return subject


def _measure_here(
    subject: Subject,
    settings: CollectSettings,
    missing: list[tuple[QualityPoint, int]],
    add: Callable[[Measurement], None],
) -> None:
    """In this process, split by split."""
    if not missing:
        return
    channel_for = _channels(subject, settings)
    splits = [point.split for point, _ in missing]
    calibrations = None
    if settings.channel.concealment not in ("zero", "rescale") or settings.channel.needs_calibration:
        calibrations = calibrations_of(subject)
    if settings.channel.needs_calibration:
        check_calibrated(subject, calibrations, splits)
    meter = load_meter(subject, splits, calibrations=calibrations)
    with closing(meter.executor):
        for point, run in sorted(missing, key=lambda each: each[0].split):
            add(Measurement(point, run, meter.at(point.split, channel_for(point, run))))


def _channels(subject: Subject, settings: CollectSettings) -> Callable[[QualityPoint, int], Channel]:
    def channel_for(point: QualityPoint, run: int) -> Channel:
        return channel_of(point, settings.channel, settings.runs, run, subject.text.tokens)

    return channel_for


def kept_in(folder: Path, model: str) -> Path:
    """The file of a folder that a model's measurements are kept in."""
    return folder / f"{Path(model).resolve().name}.jsonl"


def describe_subject(subject: Subject, settings: CollectSettings) -> dict[str, object]:
    """What all measurements of one file have in common."""
    return {
        "model": subject.model.name,
        "digest": subject.model.digest,
        "num_layers": subject.model.spec.num_layers,
        "quantization": settings.kind.quantization,
        "block_size": settings.kind.block_size,
        "boundary": settings.kind.boundary,
        "codec": settings.kind.wire,
        "tokens": subject.text.tokens,
        "window": subject.window,
        "text": subject.text.digest,
        "seed": settings.runs.seed,
        **asdict(settings.channel),
    }


def _all_runs(measured: list[float], settings: CollectSettings) -> tuple[float, ...]:
    """What was measured once because every run would give the same stands for all of them."""
    return tuple(measured * settings.runs.count if len(measured) == 1 else measured)


def _record(point: QualityPoint, runs: tuple[float, ...], subject: Subject, settings: CollectSettings) -> QualityRecord:
    return QualityRecord(
        split=point.split,
        loss=point.loss,
        sigma=point.sigma,
        granularity=settings.channel.granularity,
        mitigation=settings.channel.concealment,
        codec=settings.kind.wire,
        runs=runs,
        tokens=subject.scored,
        m=point.m,
        snr_db=point.snr_db,
    )
