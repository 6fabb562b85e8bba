"""Keeps every micro-batch's split right: observes its link, asks the controller, moves what passes the guards. Pure.

    token, token, … ──every interval──► observe the link ──► controller ──► guard rails ──► MoveSplit to the source
                                                                                                   │
    another micro-batch, status ◄── SessionMoved (into the schedules), SplitMoved or SplitKept ◄───┘

One move at a time goes over a link. What is counted is tokens of a session, so that a run repeats exactly. A
micro-batch without sessions has nothing to hand over: the first one seated there begins where the controller proposes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from agent.wire.messages import MoveSplit, SplitKept, SplitMoved
from edgectl.adaptive.decision import AdaptiveSettings, Surroundings
from edgectl.adaptive.guards import Guard, judge
from edgectl.adaptive.link_view import LinkView
from edgectl.adaptive.report import DecisionTimes, Outcome, SplitOfBatch, SplitReport
from edgectl.effects import Effect, Notice, SendSource
from edgectl.routes import MicroBatchRecord, RouteRecord
from edgectl.sessions import SessionRecord

MOVE_PATIENCE_S = 120.0
"""A move that is not answered by then counts as lost. Sources give one up themselves that comes no further; keys and
values of 4,096 tokens in 16 layers of a 7B model take ten seconds over 1 Gbit/s."""


@dataclass(slots=True)
class SplitState:
    """What is remembered of one micro-batch between its tokens."""

    number: int
    progress: float = 0.0
    """Tokens per session since the last decision."""
    since_move: float = math.inf
    back_off: float = 0.0
    target: int | None = None
    """Of a move under way."""
    asked_s: float = 0.0
    proposal: int | None = None
    gain: float | None = None
    guard: Guard | None = None
    reason: str = "no token yet"
    view: LinkView | None = None
    kept_because: str = ""
    """Why the last move was not carried out."""
    shadowed: int | None = None
    """The last proposal that shadow mode logged."""

    def count(self, tokens: float) -> None:
        self.progress += tokens
        self.since_move += tokens
        self.back_off = max(0.0, self.back_off - tokens)


@dataclass
class Adapter:
    """Splits of all micro-batches of the current plan."""

    around: Surroundings
    moves: Counter[Outcome] = field(default_factory=Counter)
    held: Counter[str] = field(default_factory=Counter)
    times: DecisionTimes = field(default_factory=DecisionTimes)
    moved_bytes: int = 0
    _routes: Sequence[RouteRecord] = ()
    _states: dict[int, SplitState] = field(default_factory=dict)
    """By the micro-batch's place in the plan."""

    @property
    def settings(self) -> AdaptiveSettings:
        return self.around.settings

    def state_of(self, batch: MicroBatchRecord) -> SplitState:
        """What is remembered of a micro-batch; anew for another plan, and without its move when it has opened again."""
        if self._routes is not self.around.deployment.routes:
            self._routes = self.around.deployment.routes
            self._states.clear()
        state = self._states.get(batch.index)
        if state is None:
            state = self._states[batch.index] = SplitState(batch.number)
        elif state.number != batch.number:
            if state.target is not None:
                self.moves["broken"] += 1
                state.kept_because = f"its micro-batch broke on the way to split {state.target}"
            state.number, state.target, state.progress = batch.number, None, 0.0
        return state

    # --- what happens -------------------------------------------------------------------------------------------------

    def on_token(self, number: int, now: float) -> list[Effect]:
        """A session of a micro-batch got a token; decides once every interval."""
        found = self._movable(number)
        if found is None:
            return []
        route, batch = found
        state = self.state_of(batch)
        seated = self.around.sessions.seated(number)
        state.count(1.0 / max(1, len(seated)))
        # Shares of a token may sum up to a hair less than a whole one.
        if not seated or state.progress < self.settings.limits.interval_tokens - 1e-6:
            return []
        return self._decide(route, batch, state, seated, now)

    def on_seated(self, numbers: Iterable[int], now: float) -> list[Effect]:
        """Sessions are about to begin in micro-batches that were idle: these may move before anything is there."""
        effects: list[Effect] = []
        for number in numbers:
            found = self._movable(number)
            if found is not None:
                route, batch = found
                effects += self._decide(route, batch, self.state_of(batch), (), now)
        return effects

    def on_moved(self, device: str, event: SplitMoved) -> list[Effect]:
        """The source says that all sessions of a micro-batch run with the new split."""
        found = self._asked_of(device, event.micro_batch)
        if found is None:
            return []
        route, batch = found
        if event.split not in route.split_points:
            return [_strange(device, f"micro-batch {event.micro_batch} moved to split {event.split}", route)]
        state = self.state_of(batch)
        if batch.split == event.split and state.target is None:
            return []  # Said again after a connection broke.
        before, batch.split = batch.split, event.split
        state.target, state.since_move, state.back_off, state.kept_because = None, 0.0, 0.0, ""
        self._wake()
        self.moves["moved"] += 1
        self.moved_bytes += max(0, event.bytes)
        if event.bytes > 0 and 0.0 < event.seconds < math.inf:
            source, peer = route.devices[:2]
            self.around.move_rates[source, peer] = event.bytes / event.seconds
        took = f"{event.bytes} bytes in {1e3 * event.seconds:.0f} ms"
        return [Notice("info", f"micro-batch {event.micro_batch} moved from split {before} to {event.split}: {took}")]

    def on_kept(self, device: str, event: SplitKept) -> list[Effect]:
        """A move was not carried out: the next one waits a while."""
        found = self._asked_of(device, event.micro_batch)
        if found is None:
            return []
        state = self.state_of(found[1])
        if state.target != event.split:
            return []  # Of a move that was given up here, or that another one has taken the place of.
        self._give_up(state, "kept", f"{event.code}: {event.detail}")
        number = event.micro_batch
        return [Notice("warning", f"micro-batch {number} was not moved to split {event.split}: {state.kept_because}")]

    def on_tick(self, now: float) -> list[Effect]:
        """Gives up on moves that nobody answers."""
        effects: list[Effect] = []
        for route, batch in self._batches():
            state = self.state_of(batch)
            if state.target is not None and now - state.asked_s > MOVE_PATIENCE_S:
                detail = f"{route.source} has not answered for {MOVE_PATIENCE_S:g} s"
                text = f"micro-batch {batch.number} was not moved to split {state.target}: {detail}"
                effects.append(Notice("warning", text))
                self._give_up(state, "unanswered", detail)
        return effects

    def resume(self, source: str) -> list[Effect]:
        """The worker of a source has a new connection: what it was asked over the old one may be lost."""
        return [
            SendSource(source, MoveSplit(batch.number, state.target))
            for route, batch in self._batches()
            if route.source == source and (state := self.state_of(batch)).target is not None
        ]

    # --- what is shown ------------------------------------------------------------------------------------------------

    def report(self) -> SplitReport:
        batches = tuple(
            SplitOfBatch(route.index, batch.index, batch.split, self.state_of(batch).proposal)
            for route, batch in self._batches()
        )
        return SplitReport(batches, Counter(self.moves), Counter(self.held), self.times, self.moved_bytes)

    # --- decisions ----------------------------------------------------------------------------------------------------

    def _decide(
        self,
        route: RouteRecord,
        batch: MicroBatchRecord,
        state: SplitState,
        seated: Sequence[SessionRecord],
        now: float,
    ) -> list[Effect]:
        """`seated`: sessions with keys and values; none in a micro-batch whose first session is about to begin."""
        began = self.settings.stopwatch()
        state.progress = 0.0
        state.view = self.around.view(route, seated)
        present = batch.split if state.target is None else state.target
        propose = self.around.propose if seated else self.around.follow
        proposal = propose(state.view.observation(present), route)
        place = replace(
            self.around.place(route, state.view, seated, present, proposal.split),
            since_move_tokens=state.since_move,
            back_off_tokens=state.back_off,
            kept_because=state.kept_because,
            under_way=self._under_way(route),
        )
        state.guard, state.reason = judge(proposal, place, self.settings.limits)
        state.proposal, state.gain = proposal.split, proposal.gain
        self.times.observe(self.settings.stopwatch() - began)
        if state.guard is not None:
            self.held[state.guard] += 1
            return self._shadow(batch, state)
        state.target, state.asked_s = proposal.split, now
        text = f"micro-batch {batch.number} moves from split {batch.split} to {proposal.split}: {state.reason}"
        return [SendSource(route.source, MoveSplit(batch.number, proposal.split)), Notice("info", text)]

    def _shadow(self, batch: MicroBatchRecord, state: SplitState) -> list[Effect]:
        """Says once of each new proposal what would be done."""
        if state.guard != "shadow":
            state.shadowed = None
            return []
        if state.shadowed == state.proposal:
            return []
        state.shadowed = state.proposal
        text = f"micro-batch {batch.number} would move from split {batch.split} to {state.proposal}: {state.reason}"
        return [Notice("info", text)]

    def _under_way(self, over: RouteRecord) -> str:
        """Which move goes over a route's first link now; "" where none does."""
        for route, batch in self._batches():
            target = self.state_of(batch).target
            if target is not None and set(over.devices[:2]) == set(route.devices[:2]):
                return f"micro-batch {batch.number} moves to split {target}"
        return ""

    def _give_up(self, state: SplitState, outcome: Outcome, because: str) -> None:
        self._wake()
        self.moves[outcome] += 1
        state.target, state.kept_because = None, because
        state.back_off = self.settings.limits.back_off_tokens

    def _wake(self) -> None:
        """A link is free: who waited for it decides with its next token, before the one that had it is due again."""
        for _, batch in self._batches():
            state = self.state_of(batch)
            if state.guard == "under-way":
                state.progress = math.inf

    def _movable(self, number: int) -> tuple[RouteRecord, MicroBatchRecord] | None:
        """An open micro-batch that has anywhere to move to."""
        found = self.around.deployment.find(number)
        return found if found is not None and len(found[0].split_points) > 1 else None

    def _asked_of(self, device: str, number: int) -> tuple[RouteRecord, MicroBatchRecord] | None:
        """A micro-batch that a device may speak of: it is its source."""
        found = self._movable(number)
        return found if found is not None and found[0].source == device else None

    def _batches(self) -> list[tuple[RouteRecord, MicroBatchRecord]]:
        return [
            (route, batch)
            for route in self.around.deployment.routes
            if route.split_points
            for batch in route.micro_batches
        ]


def _strange(device: str, what: str, route: RouteRecord) -> Notice:
    points = ", ".join(map(str, route.split_points))
    return Notice("warning", f"{device} says that {what}, which is none of {points}")
