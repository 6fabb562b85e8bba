"""Which device of a cluster measures what of a quality grid, and what becomes of their answers. Pure.

Rules
1. Nothing is asked for before every device is there, or the others have been waited for long enough; one that comes
   later joins.
2. A device has one unit of work at a time and gets the next when it is done: a quick device does more of them.
3. What was not answered goes back, whatever the reason. A device that refuses, or fails three times, gets nothing more.
4. No sockets, no clock: `now` is seconds of a monotonic clock, everything to be done is returned as effects.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Union

from agent.wire.measure_messages import MAX_MEASURE_S, MAX_QUALITY_CHANNELS, MeasureProgress, MeasureQuality
from agent.wire.measure_messages import QualityMeasured as Answer
from agent.wire.messages import (
    Failed,
    FromAgent,
    FromSource,
    Hello,
    LoadProgress,
    Rejected,
    Unload,
    WorkerHello,
    WorkerRestarted,
)
from edgectl.admission import displaced, greet
from edgectl.devices import DeviceEvent, DeviceRecord, DeviceTable
from edgectl.effects import Notice, Send
from edgectl.quality.file import Measurement
from edgectl.quality.points import QualityPoint

PATIENCE_S = 120.0
"""A device that says nothing of its work for this long has failed: a window of text takes seconds on a small board."""
STRIKES = 3
"""So often may a device fail without having refused: it restarted, or its link broke."""

Run = tuple[QualityPoint, int]
Inbound = Union[FromAgent, FromSource]


@dataclass(frozen=True, slots=True)
class Unit:
    """Runs at points of one split: what a device is asked for at a time."""

    split: int
    runs: tuple[Run, ...]


@dataclass(frozen=True, slots=True)
class Measured:
    """A device has measured one run."""

    device: str
    measurement: Measurement


@dataclass(frozen=True, slots=True)
class Finished:
    """Everything is measured, or nobody is left to measure it."""


Effect = Union[Send, Notice, Measured, Finished]


def units_of(runs: Iterable[Run], most_runs: int = MAX_QUALITY_CHANNELS) -> list[Unit]:
    """Runs by split, in pieces of at most `most_runs`."""
    units = []
    for split, group in groupby(sorted(runs, key=lambda run: run[0].split), key=lambda run: run[0].split):
        together = list(group)
        units += [
            Unit(split, tuple(together[start : start + most_runs])) for start in range(0, len(together), most_runs)
        ]
    return units


@dataclass(slots=True)
class _Working:
    request: int
    unit: Unit
    heard_s: float
    began_s: float
    answered: int = 0


@dataclass(slots=True)
class QualitySpread:
    """One grid in the making."""

    cluster: Sequence[tuple[str, str]]
    """Name and public key of every device of cluster.toml: these may connect."""
    units: Iterable[Unit]
    request_for: Callable[[int, Unit], MeasureQuality]
    """The message with this number that asks for a unit."""
    version: str
    wait_s: float
    """How long devices that are missing are waited for, since the last one came for the first time."""
    began_s: float = 0.0
    first_request: int = 1
    """Number of the first request. A device may still answer an earlier grid's: begin where that one did not."""
    problems: dict[str, str] = field(default_factory=dict)
    """Device → why it does no more."""
    _table: DeviceTable = field(init=False)
    _queue: deque[Unit] = field(init=False)
    _working: dict[str, _Working] = field(default_factory=dict)
    _strikes: dict[str, int] = field(default_factory=dict)
    _next_request: int = field(init=False)
    _arrived_s: float = field(init=False)
    _has_begun: bool = False
    _is_finished: bool = False

    def __post_init__(self) -> None:
        self._table = DeviceTable(self.cluster)
        self._queue = deque(self.units)
        self._next_request = self.first_request
        self._arrived_s = self.began_s

    @property
    def is_finished(self) -> bool:
        return self._is_finished

    @property
    def left(self) -> int:
        """Runs nobody has measured."""
        waiting = sum(len(unit.runs) for unit in self._queue)
        return waiting + sum(len(each.unit.runs) - each.answered for each in self._working.values())

    def on_message(self, origin: bytes, device: str, message: Inbound, now: float) -> list[Effect]:
        """One decoded message of the connection `origin`, whose key belongs to `device`."""
        if device not in self._table:
            return [Send(origin, Rejected("not_authorized", f"{device} is not among the devices of cluster.toml"))]
        record = self._table[device]
        effects: list[Effect]
        if isinstance(message, (Hello, WorkerHello)):
            effects = self._on_first(origin, record, message, now)
        elif origin != record.origin:
            effects = [Send(origin, displaced(device))] if record.is_present else []
        else:
            record.hear(now)
            record.apply(DeviceEvent.HEARD)
            effects = self._on_news(record, message, now)
        return [*effects, *self._proceed(now)]

    def on_bad_message(self, origin: bytes, device: str, problem: str, now: float) -> list[Effect]:
        """Something that is no message."""
        if device not in self._table or origin != self._table[device].origin or device not in self._working:
            return []
        return [*self._give_up(device, f"answered nonsense: {problem}"), *self._proceed(now)]

    def on_tick(self, now: float) -> list[Effect]:
        """To be called several times a second."""
        effects: list[Effect] = []
        for record in self._table.silent(now):
            effects += self._fail(record.name, "is lost")
        for device, working in list(self._working.items()):
            if now - working.heard_s > PATIENCE_S:
                effects += self._give_up(device, f"said nothing for {PATIENCE_S:.0f} s")
            elif now - working.began_s > MAX_MEASURE_S:
                effects += self._give_up(device, f"was not done after {MAX_MEASURE_S} s")
        return [*effects, *self._proceed(now)]

    # --- messages ---

    def _on_first(self, origin: bytes, record: DeviceRecord, first: Hello | WorkerHello, now: float) -> list[Effect]:
        is_first_time = record.hello is None
        greeting = greet(self._table, origin, record, first, version=self.version, now=now)
        if greeting.refused:
            self.problems[record.name] = greeting.refused
        if not greeting.is_anew:
            return [*greeting.effects]
        if is_first_time:
            # Not for one that starts again and again: the others would wait for ever.
            self._arrived_s = now
        lost = self._fail(record.name, "started again")
        return [*greeting.effects, *lost, Notice("info", f"{record.name} connected")]

    def _on_news(self, record: DeviceRecord, message: Inbound, now: float) -> list[Effect]:
        working = self._working.get(record.name)
        if isinstance(message, WorkerRestarted):
            record.restarted(message)
            return self._fail(record.name, f"has another worker: {message.cause}")
        if working is None:
            return []
        if isinstance(message, (MeasureProgress, LoadProgress)):
            working.heard_s = now
        elif isinstance(message, Failed) and message.request == "measure-quality":
            return self._give_up(record.name, message.detail)
        elif isinstance(message, Answer) and message.request == working.request:
            return self._on_answer(record.name, working, message, now)
        return []

    def _on_answer(self, device: str, working: _Working, answer: Answer, now: float) -> list[Effect]:
        if answer.index != working.answered or not (math.isnan(answer.perplexity) or answer.perplexity > 0.0):
            return self._give_up(device, f"answered nonsense: run {answer.index}, perplexity {answer.perplexity}")
        point, run = working.unit.runs[answer.index]
        working.answered += 1
        working.heard_s = now
        self._strikes.pop(device, None)
        if working.answered == len(working.unit.runs):
            del self._working[device]
        return [Measured(device, Measurement(point, run, answer.perplexity))]

    def _fail(self, device: str, reason: str) -> list[Effect]:
        """A device cannot go on with what it was doing; it may have another try."""
        if device not in self._working:
            return []
        self._strikes[device] = self._strikes.get(device, 0) + 1
        if self._strikes[device] >= STRIKES:
            return self._give_up(device, f"{reason}, for the {STRIKES}rd time")
        self._take_back(device)
        return [Notice("warning", f"{device} {reason}; others go on with its work")]

    def _give_up(self, device: str, reason: str) -> list[Effect]:
        """A device gets no more work."""
        self._take_back(device)
        self.problems[device] = reason
        return [Notice("warning", f"{device} is left out: {reason}")]

    def _take_back(self, device: str) -> None:
        working = self._working.pop(device, None)
        if working is not None:
            self._queue.appendleft(Unit(working.unit.split, working.unit.runs[working.answered :]))

    # --- what is next ---

    def _proceed(self, now: float) -> list[Effect]:
        if self._is_finished:
            return []
        if not self._has_begun:
            absent = [each for each in self._table if not each.is_present and each.name not in self.problems]
            if absent and now - self._arrived_s < self.wait_s:
                return []
            self._has_begun = True
        able = [each for each in self._table if each.is_present and each.name not in self.problems]
        effects: list[Effect] = []
        for record in able:
            if self._queue and record.name not in self._working:
                effects.append(self._begin(record, self._queue.popleft(), now))
        nobody_may_come = all(each.name in self.problems for each in self._table)
        is_alone = not able and (nobody_may_come or now - self._arrived_s >= self.wait_s)
        if not self._working and (not self._queue or is_alone):
            self._is_finished = True
            # What they loaded for this is of no use to anybody.
            effects += [Send(each.origin, Unload()) for each in self._table if each.is_present and each.origin]
            effects.append(Finished())
        return effects

    def _begin(self, record: DeviceRecord, unit: Unit, now: float) -> Send:
        number = self._next_request
        self._next_request += 1
        self._working[record.name] = _Working(number, unit, now, now)
        assert record.origin is not None, f"{record.name} is present without a connection"
        return Send(record.origin, self.request_for(number, unit))
