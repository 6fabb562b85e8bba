"""Bringing a plan onto the devices: wait for them, plan, load, open micro-batches, and again after a loss. Pure.

`advance` looks at what is true now and does the next thing, so the order in which messages arrive does not matter:

    WAITING ──devices there, a plan fits──► LOADING ──a route's devices hold theirs──► OPENING ──answered──► READY
       ▲                                       ▲ │                                                            │
       └───a device is back── REFUSED ◄─Failed─│─┘         routes that are left serve, the others ────────────┘
                                               └───────────come back with their devices; a broken micro-batch alone

A plan with one route is made anew when a device of it is lost; of several routes those that avoid the device go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

import msgspec

from agent.wire.messages import CloseMicroBatch, Failed, MicroBatchOpened
from edgectl.adaptive.plan import Widened, cuts_of
from edgectl.cluster_settings import ClusterSettings
from edgectl.devices import DeviceEvent, DeviceRecord, DeviceState, DeviceTable
from edgectl.effects import Effect, NoPlan, Notice, Ready, Send
from edgectl.epochs import Epochs
from edgectl.instructions import addresses_of, load_of, opening_of, sources_for, sweep
from edgectl.routes import (
    GIVEN_UP_S,
    MAX_REOPENINGS,
    BatchState,
    MicroBatchRecord,
    RouteRecord,
    Seat,
    routes_of,
)
from planner.errors import PlannerError
from planner.types import Device, Pipeline, Plan

SETTLE_S = 2.0
"""With --min-devices: how long nobody new may have appeared before a plan is made without the missing ones."""

PlanFor = Callable[[Sequence[Device]], Plan]
"""Makes the plan for devices in the order of cluster.toml. Raises PlannerError."""


class Phase(str, Enum):
    WAITING = "waiting"
    LOADING = "loading"
    OPENING = "opening"
    READY = "ready"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be deployed."""

    model: str
    digest: str
    plan_for: PlanFor
    devices: tuple[str, ...]
    """Devices to use, in the order of cluster.toml."""
    min_devices: int
    """Plan with this many when no more come; equal to the number of devices when all are needed."""
    source: str | None = None
    """The device that must hold layer 0; None leaves it to the plan."""
    pipeline: Pipeline = "no-bubbles"
    splits: tuple[int, ...] = ()
    """Split points that a policy may choose from."""
    widen: Callable[[Plan], Widened] | None = None
    """Gives devices of a plan what these take. Raises PlannerError."""


class Deployment:
    """One plan at a time and how far it has come."""

    def __init__(
        self, order: Order, table: DeviceTable, epochs: Epochs, settings: ClusterSettings | None = None
    ) -> None:
        self.order = order
        self.phase = Phase.WAITING
        self.plan: Plan | None = None
        self.routes: tuple[RouteRecord, ...] = ()
        self.code = ""
        self.detail = ""
        """Why the plan was refused."""
        self._table = table
        self._epochs = epochs
        self._settings = settings or ClusterSettings()
        self._arrived = 0.0
        self._blocked: set[str] = set()
        """Devices that could not do their part, and have not started again since."""

    @property
    def micro_batches(self) -> Iterator[MicroBatchRecord]:
        return (batch for route in self.routes for batch in route.micro_batches)

    @property
    def epoch(self) -> int:
        """Of the micro-batch that was opened last; 0 before the first."""
        return max((batch.epoch for batch in self.micro_batches), default=0)

    def seats(self) -> list[Seat]:
        """The open micro-batches."""
        return [seat for route in self.routes for seat in route.seats()] if self.phase is Phase.READY else []

    def uses(self, device: str) -> bool:
        """Whether the device has a stage of the current plan."""
        return any(device in route.devices for route in self.routes)

    def suspects(self, route: int) -> bool:
        """Whether a device of the route with this index is suspected."""
        return any(self._table[name].is_suspected for name in self.routes[route].devices)

    def numbers_through(self, device: str) -> set[int]:
        """Micro-batches that are open, or opening, on routes through a device."""
        routes = (route for route in self.routes if device in route.devices)
        return {batch.number for route in routes for batch in route.micro_batches if batch.is_alive}

    def missing(self) -> tuple[str, ...]:
        """Ordered devices that are not there."""
        return tuple(name for name in self.order.devices if not self._table[name].is_present)

    def is_down(self) -> bool:
        """Whether no route has all of its devices: nobody knows for how long."""
        return not any(self._is_complete(route) for route in self.routes)

    def is_serving(self) -> bool:
        """Whether a micro-batch is open, or opens again."""
        return any(batch.is_alive for batch in self.micro_batches)

    def advance(self, now: float) -> list[Effect]:
        """Does whatever can be done next."""
        effects: list[Effect] = []
        if self.phase is Phase.WAITING and self._may_plan(now):
            effects += self._make_plan()
        if self.phase not in (Phase.WAITING, Phase.REFUSED):
            effects += self._load()
            for route in self.routes:
                if all(self._table[name].state is DeviceState.READY for name in route.devices):
                    for batch in route.micro_batches:
                        is_due = batch.state is BatchState.GIVEN_UP and now - batch.given_up_s >= GIVEN_UP_S
                        if batch.state is BatchState.CLOSED or is_due:
                            effects += self._open(route, batch)
            effects += self._settle()
        return effects

    def on_arrival(self, device: str, now: float) -> list[Effect]:
        """A device has connected, come back or lost what it held: what depended on it starts anew."""
        self._arrived = now
        self._blocked.discard(device)
        if self.phase is Phase.REFUSED:
            return self.start_over()
        return self.lose(device) if self.uses(device) else []

    def on_reconnected(self, device: str) -> list[Effect]:
        """The same worker over a new connection: what it was asked over the old one may be lost."""
        effects: list[Effect] = []
        for route in self.routes:
            for batch in route.micro_batches:
                if batch.state is BatchState.OPENING and device in batch.awaited:
                    effects += self._open(route, batch)
        return effects

    def on_opened(self, device: str, opened: MicroBatchOpened) -> list[Effect]:
        for batch in self.micro_batches:
            if batch.state is BatchState.OPENING and batch.epoch == opened.epoch:
                batch.awaited.discard(device)
                if not batch.awaited:
                    batch.state = BatchState.OPEN
        return self._settle()

    def on_failed(self, device: str, failed: Failed, now: float) -> list[Effect]:
        """A device could not do its part: routes through it wait until it restarts."""
        record = self._table[device]
        detail = naming(device, failed.detail)
        if failed.request == "load":
            if not record.apply(DeviceEvent.LOAD_FAILED):
                return []  # About something that was asked before the device, or the plan, started anew.
            record.problem = f"{failed.code}: {failed.detail}"
            self._blocked.add(device)
        else:
            if failed.request != "open-micro-batch":
                return [Notice("error", f"{detail} (it was sent {failed.request})")]
            found = self._find(failed.micro_batch, BatchState.OPENING)
            if found is None:
                return []
            record.problem = f"{failed.code}: {failed.detail}"
            found[1].give_up(detail, now)
            if self._is_hopeful():
                return [*self._close(*found), Notice("error", detail), *self._settle()]
        return [Notice("error", detail)] if self._is_hopeful() else self._refuse(failed.code, detail)

    def on_broken(self, device: str, number: int, code: str, detail: str, now: float) -> list[Effect]:
        """A running micro-batch broke; its sessions have failed. Opens it again under a new epoch.

        The news comes twice, from the source's worker and from its supervisor; the second is about an old number.
        """
        found = self._find(number, BatchState.OPENING, BatchState.OPEN)
        if found is None:
            return []
        route, batch = found
        batch.reopenings += 1
        if batch.reopenings > MAX_REOPENINGS:
            detail = f"{naming(device, detail)} ({MAX_REOPENINGS} micro-batches broke without a token)"
            effects = self._close(route, batch)
            batch.give_up(detail, now)
            if self._is_hopeful():
                return [*effects, Notice("error", detail), *self._settle()]
            return [*effects, *self._refuse(code, detail)]
        notice = Notice("warning", f"micro-batch {number} broke, opening the next: {naming(device, detail)}")
        return [notice, *self._open(route, batch), *self._settle()]

    def on_progress(self, number: int) -> None:
        """A token came through: the micro-batch works."""
        found = self._find(number, BatchState.OPEN)
        if found is not None:
            found[1].reopenings = 0

    def find(self, number: int) -> tuple[RouteRecord, MicroBatchRecord] | None:
        """An open micro-batch and its route."""
        return self._find(number, BatchState.OPEN)

    def lose(self, device: str) -> list[Effect]:
        """A device is lost or started again: routes through it close. The others hold what they have."""
        if len(self.routes) == 1:
            return self.start_over()
        effects: list[Effect] = []
        for route in self.routes:
            if device in route.devices:
                for batch in route.micro_batches:
                    effects += self._close(route, batch)
                    batch.state, batch.reopenings, batch.problem = BatchState.CLOSED, 0, ""
        return [*effects, *self._settle()]

    def start_over(self) -> list[Effect]:
        """Gives the current plan up; the devices keep what they hold, so that an equal plan need not load it again."""
        effects = self.close()
        self.phase, self.plan, self.routes = Phase.WAITING, None, ()
        self._blocked.clear()
        self.code, self.detail = "", ""
        return effects

    def close(self) -> list[Effect]:
        """Closes the open micro-batches on every device that is there."""
        return [
            effect for route in self.routes for batch in route.micro_batches for effect in self._close(route, batch)
        ]

    def _close(self, route: RouteRecord, batch: MicroBatchRecord) -> list[Effect]:
        if not batch.is_alive:
            return []
        batch.state = BatchState.CLOSED
        records = [self._table[name] for name in route.devices]
        return [
            Send(record.origin, CloseMicroBatch(batch.number))
            for record in records
            if record.is_present and record.origin is not None
        ]

    def _find(self, number: int, *states: BatchState) -> tuple[RouteRecord, MicroBatchRecord] | None:
        for route in self.routes:
            for batch in route.micro_batches:
                if batch.number == number and batch.state in states:
                    return route, batch
        return None

    def _is_complete(self, route: RouteRecord) -> bool:
        return all(self._table[name].is_present and name not in self._blocked for name in route.devices)

    def _is_hopeful(self) -> bool:
        """Whether some micro-batch serves, or will without anybody's help."""
        return any(
            self._is_complete(route) and any(batch.state is not BatchState.GIVEN_UP for batch in route.micro_batches)
            for route in self.routes
        )

    def _settle(self) -> list[Effect]:
        """The phase follows from the micro-batches: ready once a whole route is open, and while anything is."""
        if self.phase in (Phase.WAITING, Phase.REFUSED):
            return []
        was_ready = self.phase is Phase.READY
        states = {batch.state for batch in self.micro_batches}
        if any(route.is_settled for route in self.routes) or (was_ready and BatchState.OPEN in states):
            self.phase = Phase.READY
        else:
            self.phase = Phase.OPENING if states & {BatchState.OPEN, BatchState.OPENING} else Phase.LOADING
        if was_ready or self.phase is not Phase.READY or self.plan is None:
            return []
        return [Ready(self.plan, self.epoch)]

    def _may_plan(self, now: float) -> bool:
        missing = len(self.missing())
        present = len(self.order.devices) - missing
        if missing == 0:
            return True
        if self.order.source is not None and not self._table[self.order.source].is_present:
            return False
        return present >= self.order.min_devices and now - self._arrived >= SETTLE_S

    def _make_plan(self) -> list[Effect]:
        present = [self._table[name] for name in self.order.devices if self._table[name].is_present]
        devices = [Device(record.name, record.hello.memory_bytes) for record in present if record.hello is not None]
        try:
            plan = self.order.plan_for(devices)
            widened = Widened(plan) if self.order.widen is None else self.order.widen(plan)
        except PlannerError as problem:
            self._refuse(problem.code, str(problem))
            return [NoPlan(problem.code, str(problem))]
        self.plan = widened.plan
        self.routes, self.phase = routes_of(self.plan, self.order.splits), Phase.LOADING
        return [Notice("info", note) for note in widened.notes]

    def _load(self) -> list[Effect]:
        """Tells the devices that are there what to hold, once each."""
        assert self.plan is not None, "loaded without a plan"
        effects: list[Effect] = []
        points = {route.index: route.split_points for route in self.routes}
        for record in self._used():
            if not record.is_present or record.name in self._blocked:
                continue
            cuts = cuts_of(self.plan.allotment(record.name).resident, points)
            load = load_of(self.order.model, self.order.digest, self.plan, record.name, cuts)
            if record.load == load:
                continue
            assert record.origin is not None, f"{record.name} is present without a connection"
            if record.load is None:
                effects += [Send(record.origin, message) for message in sweep()]
            record.apply(DeviceEvent.LOAD_SENT)
            record.load, record.is_fetching = load, False
            sources = sources_for(record, self._table, self._settings.bulk)
            effects.append(Send(record.origin, msgspec.structs.replace(load, sources=sources)))
        return effects

    def _used(self) -> list[DeviceRecord]:
        return [self._table[name] for name in {name: None for route in self.routes for name in route.devices}]

    def _open(self, route: RouteRecord, batch: MicroBatchRecord) -> list[Effect]:
        """Opens a micro-batch from the last stage to the first, so that every stage finds its successor open."""
        assert self.plan is not None, "opened without a plan"
        other = batch.open_under(self._epochs.next(), route.devices)
        stages = addresses_of(route.at(batch), self._table, self._settings.channels)
        message = opening_of(batch, stages, self.plan, self.order.pipeline, route.split_points)
        effects: list[Effect] = []
        for record in (self._table[name] for name in reversed(route.devices)):
            assert record.origin is not None, f"{record.name} is ready without a connection"
            # Its slots come free first; closing what is not open is no error.
            effects += [Send(record.origin, CloseMicroBatch(other)), Send(record.origin, message)]
        return effects

    def _refuse(self, code: str, detail: str) -> list[Effect]:
        effects = self.close()
        self.code = code
        self.detail = detail if not self.detail else f"{self.detail}; {detail}"
        self.phase = Phase.REFUSED
        return [*effects, Notice("error", detail)]


def naming(device: str, detail: str) -> str:
    """The detail with the device in front, unless it names it there already."""
    return detail if detail.startswith(f"{device}: ") else f"{device}: {detail}"
