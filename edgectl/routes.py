"""The micro-batches of a plan's routes as the coordinator sees them: their numbers, epochs, and how far each one is.

Every micro-batch has two numbers that take turns. So news of a broken one is never taken for news of its successor,
and opening one can name, and close, what it replaces.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum

from edgectl.adaptive.plan import route_at, split_points_of
from planner.types import Plan, Route

MAX_MICRO_BATCHES = 64
"""Of a plan, over all its routes: every device is told to close twice as many numbers before it loads."""

MAX_REOPENINGS = 5
"""Times a micro-batch may break without a single token between, before it is given up."""

GIVEN_UP_S = 30.0
"""A micro-batch that was given up is tried again after this long, while others serve: links and drivers recover."""


class BatchState(str, Enum):
    CLOSED = "closed"
    OPENING = "opening"
    OPEN = "open"
    GIVEN_UP = "given up"


@dataclass(frozen=True, slots=True)
class Seat:
    """An open micro-batch that sessions may go to."""

    micro_batch: int
    route: int
    rows: int
    source: str
    split: int = field(default=0, compare=False)
    """Layers on the source, for a session that begins now."""


@dataclass(slots=True)
class MicroBatchRecord:
    """One micro-batch; written only by Deployment."""

    index: int
    """Its place among all of the plan, from 0."""
    route: int
    rows: int
    split: int = 0
    """Layers on the source now: it moves where the route has split points."""
    number: int = 0
    epoch: int = 0
    state: BatchState = BatchState.CLOSED
    awaited: set[str] = field(default_factory=set)
    """Devices that have not answered the opening yet."""
    reopenings: int = 0
    given_up_s: float = 0.0
    problem: str = ""

    @property
    def is_alive(self) -> bool:
        return self.state in (BatchState.OPENING, BatchState.OPEN)

    def open_under(self, epoch: int, devices: Sequence[str]) -> int:
        """Takes the other number; returns the one that is to be closed before."""
        first, second = 2 * self.index + 1, 2 * self.index + 2
        self.number, other = (second, first) if self.number == first else (first, second)
        self.epoch, self.state, self.problem = epoch, BatchState.OPENING, ""
        self.awaited = set(devices)
        return other

    def give_up(self, problem: str, now: float) -> None:
        self.state, self.problem, self.given_up_s, self.reopenings = BatchState.GIVEN_UP, problem, now, 0


@dataclass(frozen=True, slots=True)
class RouteRecord:
    """One route of the plan and its micro-batches."""

    index: int
    route: Route
    micro_batches: tuple[MicroBatchRecord, ...]
    split_points: tuple[int, ...] = ()
    """Layers at which the source's part may end, ascending; empty where it stays as planned."""

    def at(self, batch: MicroBatchRecord) -> Route:
        """The route as a micro-batch of it runs now."""
        return route_at(self.route, batch.split)

    @property
    def source(self) -> str:
        return self.route.source

    @property
    def devices(self) -> tuple[str, ...]:
        return tuple(stage.device for stage in self.route.stages)

    @property
    def is_settled(self) -> bool:
        """Every micro-batch is open or given up, and one at least is open."""
        states = {batch.state for batch in self.micro_batches}
        return BatchState.OPEN in states and states <= {BatchState.OPEN, BatchState.GIVEN_UP}

    def seats(self) -> Iterator[Seat]:
        for batch in self.micro_batches:
            if batch.state is BatchState.OPEN:
                yield Seat(batch.number, self.index, batch.rows, self.source, batch.split)


def routes_of(plan: Plan, splits: Sequence[int] = ()) -> tuple[RouteRecord, ...]:
    """A record per route of a plan, its micro-batches counted through; split points are those its devices hold."""
    records = []
    index = 0
    for place, route in enumerate(plan.routes):
        numbers = range(index, index + route.micro_batches)
        split = route.stages[0].layers.stop
        batches = tuple(MicroBatchRecord(number, place, route.rows, split) for number in numbers)
        records.append(RouteRecord(place, route, batches, split_points_of(plan, route, splits)))
        index += route.micro_batches
    return tuple(records)


def slots_of(plan: Plan, device: str) -> int:
    """Rows of all micro-batches through a device: each holds a slot of its KV pool while its micro-batch is open."""
    return sum(
        route.micro_batches * route.rows
        for route in plan.routes
        if any(stage.device == device for stage in route.stages)
    )
