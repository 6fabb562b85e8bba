"""From a grid of points to measured perplexities: what is missing in a file is measured and added to it.

`collect` is the whole of `edgectl rl collect`; `edgectl eval ppl` and the studies use `collect_records`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

from edgectl.perplexity import MeasuredText, Subject, check_splits, find_subject, load_meter
from edgectl.quality_file import Measurement, QualityFile
from edgectl.quality_points import ChannelKind, ModelKind, QualityPoint, Runs, channel_of
from rl.quality import QualityRecord, QualityTable

Progress = Callable[[int, int], None]
"""Called with (runs measured, runs in all)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectSettings:
    """What is to be measured: `points` are made by `quality_points.grid`."""

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


def collect(settings: CollectSettings, out: Path | None, progress: Progress) -> QualityTable:
    """Measures what `out` does not have yet and returns the table of all points.

    Raises ConfigError for settings or a file that cannot be used, AgentError and PlannerError for the model, and
    rl.quality.BadQualityTable for points that are no rectangular grid.
    """
    collected = collect_records(settings, out, progress)
    model = collected.subject.model
    return QualityTable(model.name, model.digest, model.spec.num_layers, collected.subject.window, collected.records)


def collect_records(settings: CollectSettings, out: Path | None, progress: Progress) -> Collected:
    """As `collect`, for points in any arrangement."""
    subject = find_subject(settings.model, settings.kind, settings.text)
    check_splits(subject, [point.split for point in settings.points])
    wanted = [(point, run) for point in settings.points for run in settings.runs.of(point)]
    with nullcontext() if out is None else QualityFile(out, describe_subject(subject, settings)) as file:
        measured = {} if file is None else file.measured
        missing = [each for each in wanted if each not in measured]
        done = len(wanted) - len(missing)
        progress(done, len(wanted))
        for measurement in measure_here(subject, settings, missing):
            if file is None:
                measured[measurement.point, measurement.run] = measurement.perplexity
            else:
                file.add(measurement)
            done += 1
            progress(done, len(wanted))
        runs = {
            point: _all_runs([measured[point, run] for run in settings.runs.of(point)], settings)
            for point in settings.points
        }
    return Collected(subject, tuple(_record(point, each, subject, settings) for point, each in runs.items()))


def measure_here(
    subject: Subject, settings: CollectSettings, missing: list[tuple[QualityPoint, int]]
) -> Iterable[Measurement]:
    """Measures in this process, split by split."""
    if not missing:
        return
    meter = load_meter(subject, [point.split for point in settings.points], lambda done, total: None)
    with closing(meter.executor):
        for point, run in missing:
            channel = channel_of(point, settings.channel, settings.runs, run, subject.text.tokens)
            yield Measurement(point, run, meter.at(point.split, channel))


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
