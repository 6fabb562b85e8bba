"""Which measurements a profile takes, in which order, and what becomes of their answers. Pure.

Rules
1. Nothing is measured before every wanted device is there, or the others have been waited for long enough.
2. At no time do two measurements touch the same host (boot id): devices of one machine share its cores, links of one
   machine its network interface. Devices of different hosts are measured at the same time.
3. Links come after the devices. A device that could not be measured has no links.
4. Whatever goes wrong ends one measurement, with the device and the reason; the others go on.
5. No sockets, no clock: `now` is seconds of a monotonic clock, everything to be done is returned as effects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Union

from agent.wire.measure_messages import DeviceMeasured, LinkMeasured, MeasureProgress
from agent.wire.messages import (
    Failed,
    FromAgent,
    FromSource,
    Hello,
    LoadProgress,
    Rejected,
    WorkerHello,
    WorkerRestarted,
)
from edgectl.admission import displaced, greet
from edgectl.devices import DeviceEvent, DeviceRecord, DeviceTable
from edgectl.effects import Notice, Send
from edgectl.measurements import Settings, Task, may_begin, objection, tasks_for
from planner.profile import DeviceProfile, LinkProfile

PATIENCE_FACTOR = 3.0
PATIENCE_S = 60.0
"""A measurement that says nothing for this long, and three times what it was given, has failed: weights of one layer
are quantized within seconds even on a small board, and every part that follows is announced."""

LONGEST_FACTOR = 5.0
LONGEST_S = 900.0
"""However much it says: beyond this, and five times what it was given, a measurement has failed as well. Loading is not
in the time that is given, and a slow card takes minutes to read."""

Inbound = Union[FromAgent, FromSource]


@dataclass(frozen=True, slots=True)
class Planned:
    """Every wanted device is there or given up: these are the measurements to come."""

    tasks: tuple[Task, ...]


@dataclass(frozen=True, slots=True)
class Began:
    task: Task


@dataclass(frozen=True, slots=True)
class Advanced:
    """How far a measurement is: parts done of all, and what it does now."""

    task: Task
    what: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Ended:
    """A measurement has its result, or a problem that says why not."""

    task: Task
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Finished:
    """Nothing is left to do."""


Effect = Union[Send, Notice, Planned, Began, Advanced, Ended, Finished]


@dataclass(slots=True)
class _Running:
    request: int
    task: Task
    heard_s: float
    began_s: float


@dataclass(slots=True)
class Profiling:
    """One profile in the making."""

    cluster: Sequence[tuple[str, str]]
    """Name and public key of every device of cluster.toml, in its order: these may connect."""
    wanted: Sequence[str]
    """Devices to measure."""
    settings: Settings
    version: str
    """Of edgectl."""
    wait_s: float
    """How long a device that is missing is waited for, since the last one came for the first time."""
    known: Sequence[str] = ()
    """Devices that an older profile describes: links between them and the wanted ones are measured too."""
    began_s: float = 0.0
    first_request: int = 1
    """Number of the first request. A device may still answer an earlier profile: begin where that one did not."""
    profiles: dict[str, DeviceProfile] = field(default_factory=dict)
    links: dict[tuple[str, str], LinkProfile] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    """Device or link → why it could not be measured."""
    _table: DeviceTable = field(init=False)
    _queue: list[Task] = field(default_factory=list)
    _running: dict[str, _Running] = field(default_factory=dict)
    """By the device that measures."""
    _next_request: int = field(init=False)
    _arrived_s: float = field(init=False)
    _is_planned: bool = False
    _is_finished: bool = False

    def __post_init__(self) -> None:
        self._table = DeviceTable(self.cluster)
        self._arrived_s = self.began_s
        self._next_request = self.first_request

    def on_message(self, origin: bytes, device: str, message: Inbound, now: float) -> list[Effect]:
        """One decoded message of the connection `origin`, whose key belongs to `device`."""
        if device not in self._table:
            return [Send(origin, Rejected("not_authorized", f"{device} is not among the devices of cluster.toml"))]
        record = self._table[device]
        if isinstance(message, (Hello, WorkerHello)):
            effects = self._on_first(origin, record, message, now)
        elif origin != record.origin:
            # Another agent with the same key, or one that has not said Hello yet.
            effects = [Send(origin, displaced(device))] if record.is_present else []
        else:
            record.hear(now)
            record.apply(DeviceEvent.HEARD)
            effects = self._on_news(record, message, now)
        return [*effects, *self._proceed(now)]

    def on_bad_message(self, origin: bytes, device: str, problem: str, now: float) -> list[Effect]:
        """Something that is no message: of a device that measures it is all that will come."""
        running = self._running.get(device)
        if running is None or origin != self._table[device].origin:
            return []
        return [*self._end(running, f"{device} answered nonsense: {problem}"), *self._proceed(now)]

    def on_tick(self, now: float) -> list[Effect]:
        """To be called several times a second."""
        effects: list[Effect] = []
        for record in self._table.silent(now):
            effects += self._lose(record.name, f"{record.name} is lost: no heartbeat for {now - record.heard:.1f} s")
        for running in list(self._running.values()):
            patience_s = max(PATIENCE_S, PATIENCE_FACTOR * self.settings.seconds(running.task))
            if now - running.heard_s > patience_s:
                effects += self._end(running, f"{running.task.device} said nothing for {patience_s:.0f} s")
                continue
            longest_s = max(LONGEST_S, LONGEST_FACTOR * self.settings.seconds(running.task))
            if now - running.began_s > longest_s:
                effects += self._end(running, f"{running.task.device} was not done after {longest_s:.0f} s")
        return [*effects, *self._proceed(now)]

    @property
    def is_finished(self) -> bool:
        return self._is_finished

    # --- messages ---

    def _on_first(self, origin: bytes, record: DeviceRecord, first: Hello | WorkerHello, now: float) -> list[Effect]:
        is_first_time = record.hello is None
        greeting = greet(self._table, origin, record, first, version=self.version, now=now)
        if greeting.refused:
            record.problem = greeting.refused
        if not greeting.is_anew:
            return [*greeting.effects]
        if is_first_time:
            # Not for one that starts again and again: the others would wait for ever.
            self._arrived_s = now
        lost = self._lose(record.name, f"{record.name} started again")
        return [*greeting.effects, *lost, Notice("info", f"{record.name} connected")]

    def _on_news(self, record: DeviceRecord, message: Inbound, now: float) -> list[Effect]:
        running = self._running.get(record.name)
        if isinstance(message, WorkerRestarted):
            record.restarted(message)
            return self._lose(record.name, f"the worker of {record.name} restarted: {message.cause}")
        if running is None:
            return []
        if isinstance(message, (MeasureProgress, LoadProgress)):
            running.heard_s = now
            if isinstance(message, LoadProgress):
                return []
            return [Advanced(running.task, message.what, message.done, message.total)]
        is_link = bool(running.task.peer)
        if isinstance(message, Failed) and message.request == ("measure-link" if is_link else "measure-device"):
            return self._end(running, message.detail)
        if isinstance(message, DeviceMeasured) and message.request == running.request and not is_link:
            # What a device is called and where it runs is for its key and its Hello to say.
            profile = replace(message.profile, name=record.name, host=host_of(record))
            problem = objection(self.settings, profile)
            if not problem:
                self.profiles[record.name] = profile
            return self._end(running, problem and f"{record.name} answered nonsense: {problem}")
        if isinstance(message, LinkMeasured) and message.request == running.request and is_link:
            pair = (running.task.device, running.task.peer)
            link = replace(message.link, source=pair[0], destination=pair[1])
            # One end at least was measured: without, there was nothing to ask.
            measured = self.profiles.get(pair[0]) or self.profiles[pair[1]]
            problem = objection(self.settings, measured, link)
            if not problem:
                self.links[pair] = link
            return self._end(running, problem and f"{record.name} answered nonsense: {problem}")
        return []

    def _lose(self, device: str, reason: str) -> list[Effect]:
        """A device cannot go on with what it was doing; it may do other things once it is back.

        Who measures a link to it will say so himself.
        """
        running = self._running.get(device)
        return self._end(running, reason) if running is not None else []

    def _end(self, running: _Running, problem: str = "") -> list[Effect]:
        del self._running[running.task.device]
        return [self._failed(running.task, problem)] if problem else [Ended(running.task)]

    def _failed(self, task: Task, problem: str) -> Ended:
        self.problems[str(task)] = problem
        return Ended(task, problem)

    # --- what is next ---

    def _proceed(self, now: float) -> list[Effect]:
        effects = self._plan(now)
        if not self._is_planned or self._is_finished:
            return effects
        for task in list(self._queue):
            problem = self._obstacle(task)
            if problem:
                self._queue.remove(task)
                effects.append(self._failed(task, problem))
            elif may_begin(task, self._queue, (running.task for running in self._running.values()), self._hosts()):
                self._queue.remove(task)
                effects += self._begin(task, now)
        if not self._queue and not self._running:
            self._is_finished = True
            effects.append(Finished())
        return effects

    def _plan(self, now: float) -> list[Effect]:
        if self._is_planned:
            return []
        absent = [name for name in (*self.wanted, *self.known) if not self._table[name].is_present]
        if absent and now - self._arrived_s < self.wait_s:
            return []
        self._is_planned = True
        missing = [name for name in absent if name in self.wanted]
        for name in missing:
            self.problems[name] = self._table[name].problem or "not connected"
        notices = [Notice("warning", f"{name}: {self.problems[name]}; going on without it") for name in missing]
        present = [name for name in self.wanted if name not in missing]
        others = [name for name in self.known if self._table[name].is_present]
        self._queue = tasks_for(present, others, [name for name, _ in self.cluster])
        return [*notices, Planned(tuple(self._queue))]

    def _obstacle(self, task: Task) -> str:
        """Why a measurement that has not begun never will."""
        for name in task.names:
            if task.peer and name in self.problems:
                return f"{name} was not measured: {self.problems[name]}"
            if not self._table[name].is_present:
                return f"{name} is lost"
        return ""

    def _hosts(self) -> dict[str, str]:
        """Device → what it shares with other devices of its machine."""
        return {record.name: host_of(record) for record in self._table}

    def _begin(self, task: Task, now: float) -> list[Effect]:
        number = self._next_request
        self._next_request += 1
        self._running[task.device] = _Running(number, task, now, now)
        record = self._table[task.device]
        assert record.origin is not None, f"{task.device} is present without a connection"
        peer = self._table[task.peer] if task.peer else None
        return [Began(task), Send(record.origin, self.settings.request(number, task, peer))]


def host_of(record: DeviceRecord) -> str:
    """The boot id of its Hello; a device that has none is a host of its own."""
    return record.hello.boot_id if record.hello is not None and record.hello.boot_id else record.name
