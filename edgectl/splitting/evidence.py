"""Everything the splitting study computed, before it is put into words: runs, references, grids, times. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from edgectl.splitting.quality import Measured
from edgectl.splitting.results import Violin
from edgectl.splitting.runs import Case, RunResult, RunSpec, World
from edgectl.splitting.sweeps import StudySize
from rl.evaluate import Interval

References = Mapping[str, RunResult]


@dataclass(frozen=True, slots=True)
class Evidence:
    """What sections are written from."""

    size: StudySize
    measured: Measured
    validations: Mapping[str, Any]
    results: Mapping[RunSpec, RunResult]
    truth: RunResult
    """The run whose rewards were measured."""
    references: Mapping[tuple[World, Case, int], References]
    coarse: Mapping[int, References]
    """Per number of true evaluations."""
    seconds: Mapping[str, float]
    processes: int

    def of(self, specs: Iterable[RunSpec]) -> list[RunResult]:
        """Results in this order."""
        return [self.results[spec] for spec in specs]

    def mean(self, specs: Iterable[RunSpec]) -> Interval:
        """Return over the common starts, over seeds."""
        return Interval.of([result.mean for result in self.of(specs)])

    def reference(self, spec: RunSpec, name: str) -> float:
        """Mean return of a reference in a run's world."""
        return self.references[spec.world, spec.case, spec.actions][name].mean

    def violin(self, name: str, specs: Sequence[RunSpec]) -> Violin:
        """Of all seeds' drawn returns."""
        return Violin(name, tuple(chain.from_iterable(result.returns for result in self.of(specs))))


def grouped(specs: Iterable[RunSpec], *names: str) -> dict[tuple[Any, ...], list[RunSpec]]:
    """Runs with equal values of these fields together, in order of appearance: what differs is mostly the seed."""
    groups: dict[tuple[Any, ...], list[RunSpec]] = {}
    for spec in specs:
        groups.setdefault(tuple(getattr(spec, name) for name in names), []).append(spec)
    return groups


def is_above(one: Interval, other: Interval) -> bool:
    """Whether one's 95 % interval lies above the other's; of a single seed there is none, and nothing can be said."""
    if one.half is None or other.half is None:
        return False
    return one.mean - one.half > other.mean + other.half


def compared(one: Interval, other: Interval) -> str:
    """In one word: above, below, or intervals that overlap."""
    if is_above(one, other):
        return ">"
    return "<" if is_above(other, one) else "≈"
