"""Perplexity against loss, split and noise as it was measured: records, a table of them, and gains read off it.

A table is data about one model. What interpolates it is linear along each axis and never extrapolates; a perplexity
that is no number stays in the record, is not averaged, and refuses to become a reward.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import product
from statistics import fmean, stdev
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit  # type: ignore[import-untyped]

from planner.channel import Concealment, Granularity
from rl.arrays import FloatArray
from rl.grid import Grid

MAX_RECORDS = 1 << 16
"""Of a table: 32 splits, 32 losses, 16 sigmas, and some."""

MAX_LAYERS = 4096
"""As in profiles; no model has a tenth of it."""
MOST_PERPLEXITY = 1e100
"""No text has a vocabulary of that size: beyond it a model is broken, and sums of such numbers overflow."""
MAX_CHARACTERS = 64 << 20
"""Of a file; a record has about 400."""
SCHEMA = 1


class BadQualityTable(ValueError):
    """A table that cannot be read or used: the field, the point or the other model is named."""

    code = "bad_quality_table"

    def __init__(self, place: str, problem: str) -> None:
        super().__init__(f"quality table: {place}: {problem}" if place else f"quality table: {problem}")
        self.place = place


@dataclass(frozen=True, slots=True)
class QualityRecord:
    """What one point of the grid measured. Raises ValueError."""

    split: int
    """Layers before the channel."""
    loss: float
    """Probability that an element, or a packet, is lost."""
    sigma: float
    """Standard deviation of the noise, in units of the hidden states."""
    granularity: Granularity
    mitigation: Concealment
    codec: str
    runs: tuple[float, ...]
    """Perplexity of each seeded run. One that is no finite number is kept as it is."""
    tokens: int
    """Scored per run."""
    m: float | None = None
    """Nakagami shape, where the gain was drawn per token and the loss follows from it."""
    snr_db: float | None = None
    """Noise by the token's own mean square in place of `sigma`."""

    def __post_init__(self) -> None:
        if self.split < 0 or self.tokens < 1 or not self.runs:
            raise ValueError(f"split {self.split}, {self.tokens} tokens, {len(self.runs)} runs: 0, 1, 1 or more")
        if not 0.0 <= self.loss <= 1.0:
            raise ValueError(f"loss {self.loss} is no probability")
        if not 0.0 <= self.sigma < math.inf:
            raise ValueError(f"sigma {self.sigma}: a finite number from 0 on is expected")
        if self.m is not None and not 0.5 <= self.m < math.inf:
            raise ValueError(f"m {self.m}: a Nakagami distribution has 0.5 or more")
        if any(run <= 0.0 for run in self.runs):
            raise ValueError(f"perplexities {self.runs}: more than 0 is expected")

    @property
    def finite_runs(self) -> tuple[float, ...]:
        """Those that gave a number."""
        return tuple(run for run in self.runs if run <= MOST_PERPLEXITY)

    @property
    def not_finite(self) -> int:
        """Runs that gave no number."""
        return len(self.runs) - len(self.finite_runs)

    @property
    def ppl_mean(self) -> float:
        """Over the runs that gave a number; NaN where none did."""
        return fmean(self.finite_runs) if self.finite_runs else math.nan

    @property
    def ppl_ci95(self) -> float | None:
        """Half the width of the mean's 95 % interval (Student's t); None of fewer than two runs."""
        runs = self.finite_runs
        if len(runs) < 2:
            return None
        return float(stdtrit(len(runs) - 1, 0.975)) * stdev(runs) / math.sqrt(len(runs))

    @property
    def point(self) -> tuple[object, ...]:
        """Everything but the runs: two records of one point are one measurement."""
        return (
            *(self.split, self.loss, self.sigma, self.granularity, self.mitigation),
            *(self.codec, self.tokens, self.m, self.snr_db),
        )


def joined(records: Iterable[QualityRecord]) -> tuple[QualityRecord, ...]:
    """Records of the same point as one, with all their runs; in order of the points' first appearance."""
    points: dict[tuple[object, ...], QualityRecord] = {}
    for record in records:
        known = points.get(record.point)
        points[record.point] = record if known is None else replace(known, runs=known.runs + record.runs)
    return tuple(points.values())


class Gain(Protocol):
    """Where rewards get their quality from: a table, a surrogate, the authors' surface. Vectorised."""

    def __call__(self, loss: FloatArray, split: FloatArray, sigma: FloatArray) -> FloatArray:
        """(PPL_0 - PPL) / PPL_0 of each element; the arguments have one shape (n,), and so has what comes back."""


@dataclass(frozen=True)
class QualityTable:
    """Records of one model on one rectangular grid of splits, losses and sigmas. Raises BadQualityTable."""

    model: str
    digest: str
    """Of the model's weights; empty: not known."""
    num_layers: int
    window: int
    """Tokens of text that are scored together."""
    records: tuple[QualityRecord, ...]
    _grid: Grid = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 1 <= len(self.records) <= MAX_RECORDS:
            raise BadQualityTable("records", f"{len(self.records)}, 1 to {MAX_RECORDS} are possible")
        if not 1 <= self.num_layers <= MAX_LAYERS or self.window < 2:
            raise BadQualityTable("num_layers, window", f"{self.num_layers}, {self.window}: 1 to {MAX_LAYERS}, and 2")
        kinds = {(r.granularity, r.mitigation, r.codec, r.snr_db, r.m is None) for r in self.records}
        if len(kinds) > 1:
            raise BadQualityTable("records", f"several kinds of channel, one is expected: {sorted(map(str, kinds))}")
        beyond = [record.split for record in self.records if record.split > self.num_layers]
        if beyond:
            raise BadQualityTable("records", f"split {beyond[0]} in a model of {self.num_layers} layers")
        object.__setattr__(self, "_grid", self._filled())

    @property
    def splits(self) -> tuple[int, ...]:
        return tuple(sorted({record.split for record in self.records}))

    @property
    def losses(self) -> tuple[float, ...]:
        return tuple(sorted({record.loss for record in self.records}))

    @property
    def sigmas(self) -> tuple[float, ...]:
        return tuple(sorted({record.sigma for record in self.records}))

    @property
    def not_finite(self) -> int:
        """Runs of the whole table that gave no number."""
        return sum(record.not_finite for record in self.records)

    def _filled(self) -> Grid:
        axes = (self.losses, self.splits, self.sigmas)
        means: dict[tuple[float, float, float], float] = {}
        for record in self.records:
            point = (record.loss, record.split, record.sigma)
            if point in means:
                raise BadQualityTable("records", f"two of {_named(*point)}")
            means[point] = record.ppl_mean
        # Looked for before there is a grid: one of far more points than records could be too large for memory.
        absent = math.prod(map(len, axes)) - len(means)
        if absent:
            first = next(point for point in product(*axes) if point not in means)
            raise BadQualityTable("records", f"none of {_named(*first)}; {absent} points are missing")
        values = np.array([means[point] for point in product(*axes)]).reshape([len(axis) for axis in axes])
        return Grid(tuple(np.array(axis, np.float64) for axis in axes), values)

    def ppl(self, loss: ArrayLike, split: ArrayLike, sigma: ArrayLike = 0.0) -> FloatArray:
        """Perplexity, of the shape that the three broadcast to: linear between points, constant beyond them, and NaN
        next to a point without a number."""
        return self._grid.at(loss, split, sigma)

    def gain(self, loss: FloatArray, split: FloatArray, sigma: FloatArray) -> FloatArray:
        """The normalised gain of a split over one drawn evenly from the table's, at the same loss and sigma: the form
        the authors' surrogate learns. Arguments (n,). Raises BadQualityTable where a perplexity is no number."""
        # The mean of (PPL_0 - PPL) / PPL_0 over all PPL_0 is 1 - PPL mean(1 / PPL_0).
        firsts = self.ppl(loss[:, None], np.array(self.splits, np.float64)[None], sigma[:, None])
        result: FloatArray = 1.0 - self.ppl(loss, split, sigma) * np.mean(1.0 / firsts, axis=1)
        if not np.isfinite(result).all():
            at = int(np.argmax(~np.isfinite(result)))
            raise BadQualityTable(
                "runs", f"no perplexity near {_named(float(loss[at]), float(split[at]), float(sigma[at]))}"
            )
        return result

    def gain_over(
        self, start: tuple[FloatArray, FloatArray, FloatArray], loss: FloatArray, split: FloatArray, sigma: FloatArray
    ) -> FloatArray:
        """(PPL_0 - PPL) / PPL_0 with PPL_0 at `start` (loss, split, sigma): the paper's reward."""
        before = self.ppl(*start)
        result: FloatArray = (before - self.ppl(loss, split, sigma)) / before
        return result

    def to_json(self) -> str:
        """The table as text; what is no finite number is null."""
        raw = msgspec.to_builtins(_TableFile.of(self))
        return json.dumps(raw, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> QualityTable:
        """Raises BadQualityTable naming the field."""
        if len(text) > MAX_CHARACTERS:
            raise BadQualityTable("", f"{len(text)} characters, at most {MAX_CHARACTERS}")
        try:
            file = msgspec.json.decode(text.encode(errors="replace"), type=_TableFile)
        except (msgspec.DecodeError, RecursionError) as problem:
            what, _, place = str(problem).partition(" - at `$")
            raise BadQualityTable(place.strip("`.").lstrip("."), what) from None
        if file.schema != SCHEMA:
            raise BadQualityTable("schema", f"is {file.schema}, this version reads {SCHEMA}")
        records = []
        for number, row in enumerate(file.records):
            try:
                records.append(row.record())
            except ValueError as problem:
                raise BadQualityTable(f"records[{number}]", str(problem)) from None
        return cls(file.model, file.digest, file.num_layers, file.window, tuple(records))

    def check_model(self, model: str, digest: str, num_layers: int) -> None:
        """Raises BadQualityTable naming what differs; digests are compared where both are known."""
        if num_layers != self.num_layers:
            raise BadQualityTable("num_layers", f"measured on {self.model} with {self.num_layers}, here {num_layers}")
        if digest and self.digest and digest != self.digest:
            raise BadQualityTable("digest", f"measured on {self.model} {self.digest[:12]}, here {model} {digest[:12]}")


class _RecordFile(msgspec.Struct, frozen=True, kw_only=True):
    split: int
    loss: float
    sigma: float
    granularity: Granularity
    mitigation: Concealment
    codec: str
    runs: tuple[float | None, ...]
    tokens: int
    m: float | None = None
    snr_db: float | None = None
    ppl_mean: float | None = None
    ppl_ci95: float | None = None

    def record(self) -> QualityRecord:
        return QualityRecord(
            *(self.split, self.loss, self.sigma, self.granularity, self.mitigation, self.codec),
            runs=tuple(math.nan if run is None else run for run in self.runs),
            tokens=self.tokens,
            m=self.m,
            snr_db=self.snr_db,
        )


class _TableFile(msgspec.Struct, frozen=True, kw_only=True):
    schema: int
    model: str
    digest: str
    num_layers: int
    window: int
    records: tuple[_RecordFile, ...]

    @classmethod
    def of(cls, table: QualityTable) -> _TableFile:
        return cls(
            schema=SCHEMA,
            model=table.model,
            digest=table.digest,
            num_layers=table.num_layers,
            window=table.window,
            records=tuple(_row(record) for record in table.records),
        )


def _row(record: QualityRecord) -> _RecordFile:
    names = ("split", "loss", "sigma", "granularity", "mitigation", "codec", "tokens", "m", "snr_db")
    return _RecordFile(
        **{name: getattr(record, name) for name in names},
        runs=tuple(run if math.isfinite(run) else None for run in record.runs),
        ppl_mean=record.ppl_mean if record.finite_runs else None,
        ppl_ci95=record.ppl_ci95,
    )


def _named(loss: float, split: float, sigma: float) -> str:
    return f"loss {loss:g}, split {split:g}, sigma {sigma:g}"
