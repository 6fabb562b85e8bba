"""One decision: what is observed of a link, what the controller wants, and where the micro-batch stands. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from agent.wire.messages import Heartbeat
from edgectl.adaptive.guards import HORIZON_DECISIONS, Limits, Place, handover
from edgectl.adaptive.layer_pace import LayerPace
from edgectl.adaptive.link_view import LinkView, view_link
from edgectl.adaptive.replanner import Replanner
from edgectl.deploy import Deployment
from edgectl.devices import DeviceTable
from edgectl.routes import RouteRecord
from edgectl.sessions import SessionRecord, SessionTable
from planner.channel import Channel
from rl.controller import Controller, Observation, Proposal

Price = Callable[[Observation, int], "float | None"]
"""What moving to a split is worth per decision, by the quality that was measured; None where that is not known."""


def _no_stopwatch() -> float:
    return 0.0


def _no_price(_: Observation, __: int) -> None:
    return None


@dataclass(frozen=True, slots=True)
class AdaptiveSettings:
    """Who chooses splits, and how."""

    controller: Controller
    kv_bytes_per_token_layer: int
    """What a token leaves behind in a layer."""
    limits: Limits = field(default_factory=Limits)
    price: Price = _no_price
    """Of proposals whose gain the controller cannot say."""
    origin: str = ""
    """The file that the controller came from."""
    stopwatch: Callable[[], float] = _no_stopwatch
    """Seconds, to say how long decisions took; nothing is decided by it."""
    notes: tuple[str, ...] = ()
    """What a person should know of the file before it is put to work."""

    def described(self) -> str:
        """Who chooses splits, of which, and how often; a warning per note."""
        limits, listed = self.limits, ", ".join(map(str, self.controller.splits))
        shadow = ", in shadow: nothing is moved" if limits.is_shadow else ""
        head = (
            f"splits {listed} by {self.controller.name} ({self.origin}), decided every {limits.interval_tokens} "
            f"tokens, {limits.dwell_tokens} apart{shadow}"
        )
        return "\n".join((head, *(f"warning: {note}" for note in self.notes)))


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a decision looks at; it changes none of it."""

    settings: AdaptiveSettings
    deployment: Deployment
    devices: DeviceTable
    sessions: SessionTable
    channels: Mapping[tuple[str, str], Channel]
    paces: dict[str, LayerPace] = field(default_factory=dict)
    """What devices take for their layers, by name."""
    move_rates: dict[tuple[str, str], float] = field(default_factory=dict)
    """Bytes per second of the last move between two devices."""

    def view(self, route: RouteRecord, seated: Sequence[SessionRecord]) -> LinkView:
        """The link behind a route's source as these sessions' next positions meet it."""
        source, peer = route.devices[:2]
        positions = [record.position for record in seated]
        return view_link(source, peer, self.channels.get((source, peer)), positions, self.devices[source].heartbeat)

    def heard(self, device: str, heartbeat: Heartbeat) -> None:
        """Keeps what a device's heartbeat says of its pace; only a planner looks at it."""
        if isinstance(self.settings.controller, Replanner):
            layers = {
                len(stage.layers)
                for route in self.deployment.routes
                for batch in route.micro_batches
                for stage in route.at(batch).stages
                if stage.device == device
            }
            pace = self.paces.setdefault(device, LayerPace())
            pace.heard(heartbeat.telemetry, layers.pop() if len(layers) == 1 else None)

    def _asked(self, observation: Observation, route: RouteRecord) -> Proposal:
        controller = self.settings.controller
        if not isinstance(controller, Replanner):
            return controller.propose(observation)
        source, peer = (self.paces.setdefault(name, LayerPace()) for name in route.devices[:2])
        stop = route.route.stages[1].layers.stop
        return controller.planned(observation, route.split_points, stop, source, peer)

    def propose(self, observation: Observation, route: RouteRecord) -> Proposal:
        """What the controller wants, or the nearest to it that the devices hold; with its price, where one is known."""
        settings, present, points = self.settings, observation.split, route.split_points
        try:
            proposal = self._asked(observation, route)
        except ValueError as problem:
            return Proposal(present, None, f"{settings.controller.name}: {problem}")
        wanted = proposal.split
        if wanted not in points and present in points:
            between = [split for split in points if min(present, wanted) < split < max(present, wanted)]
            nearest = min(between, key=lambda split: abs(split - wanted), default=None)
            if nearest is not None:
                reason = f"{proposal.reason or 'proposed'}; {wanted} is not resident, {nearest} is the nearest"
                proposal = Proposal(nearest, None, reason)
        if proposal.gain is None and proposal.split != present:
            return replace(proposal, gain=settings.price(observation, proposal.split))
        return proposal

    def follow(self, observation: Observation, route: RouteRecord) -> Proposal:
        """Where a controller comes to that moves by small steps, were the channel to stay: nothing is to be handed
        over before a session begins, so its first steps need not wait for each other."""
        proposal, points = self.propose(observation, route), route.split_points
        seen = {observation.split}
        for _ in range(HORIZON_DECISIONS - 1):
            if proposal.split in seen or proposal.split not in points:
                break
            seen.add(proposal.split)
            following = self.propose(replace(observation, split=proposal.split), route)
            if following.split in seen or following.split not in points:
                break
            gains = (proposal.gain, following.gain)
            proposal = replace(following, gain=None if None in gains else sum(gain or 0.0 for gain in gains))
        return proposal

    def place(
        self, route: RouteRecord, view: LinkView, seated: Sequence[SessionRecord], present: int, proposed: int
    ) -> Place:
        """What stands for and against a move as far as devices, link and sessions go."""
        source, peer = route.devices[:2]
        pace = self.sessions.traffic.paces.get(route.index)
        token_s = None if pace is None else pace.token_s(max(1, self.sessions.traffic.sessions_on(route.index)))
        positions = [record.position for record in seated]
        return Place(
            split=present,
            split_points=route.split_points,
            source=source,
            peer=peer,
            held=self._held((source, peer)),
            handover=handover(
                view,
                abs(proposed - present),
                positions,
                self.settings.kv_bytes_per_token_layer,
                self.move_rates.get((source, peer)),
            ),
            token_ms=None if token_s is None else 1e3 * token_s,
            remaining_tokens=sum(record.remaining for record in seated) / len(seated) if seated else 0.0,
            is_idle=not seated,
            suspected=[name for name in route.devices if self.devices[name].is_suspected],
            full=self._full(source if proposed > present else peer),
        )

    def _held(self, names: Sequence[str]) -> str:
        plan = self.deployment.plan
        assert plan is not None, "decided without a plan"
        resident = {name: " ".join(map(str, plan.allotment(name).resident)) for name in names}
        return ", ".join(f"{name} holds layers {layers}" for name, layers in resident.items())

    def _full(self, name: str) -> str:
        """Why a device that would get layers should not: since it loaded them its memory has become less."""
        record = self.devices[name]
        if record.hello is None or record.loaded_bytes <= record.hello.memory_bytes:
            return ""
        taken, most = -(-record.loaded_bytes >> 20), record.hello.memory_bytes >> 20
        return f"{name} has room for {most} MiB of a model and holds {taken} MiB"
