"""A controller that proposes what a test says, and scenes in which splits can move."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from agent.wire.messages import MoveSplit
from edgectl.adaptive.adapt import Adapter
from edgectl.adaptive.decision import AdaptiveSettings
from edgectl.adaptive.guards import Limits
from edgectl.cluster_settings import ClusterSettings
from planner.channel import Channel
from planner.types import Allotment, Device, LayerRange, Plan
from rl.controller import Observation, Proposal
from tests.fakes.fake_agents import LAYERS, Scene, plan_of, route_of

SPLITS = (1, 2, 3, 4, 5)
KV_BYTES = 1000


@dataclass
class Scripted:
    """Proposes `split` until a test changes it; `ask` may look at what is observed."""

    split: int | None = None
    gain: float | None = None
    ask: Callable[[Observation], int] | None = None
    seen: list[Observation] = field(default_factory=list)
    name: str = "scripted"
    splits: tuple[int, ...] = SPLITS

    def propose(self, observation: Observation) -> Proposal:
        self.seen.append(observation)
        if observation.split not in self.splits:
            raise ValueError(f"split {observation.split} is not known")
        split = self.ask(observation) if self.ask is not None else self.split
        return Proposal(observation.split if split is None else split, self.gain, "as the script says")


def wide(*, micro_batches: int = 1, rows: int = 2, routes: int = 1) -> Callable[[Sequence[Device]], Plan]:
    """Routes from a to b and, as a second one, from a to c; every device holds every layer that it may be given."""

    def plan_for(_: Sequence[Device]) -> Plan:
        plan = plan_of(*(route_of("a", peer, micro_batches=micro_batches, rows=rows) for peer in ("b", "c")[:routes]))
        held = {"a": LayerRange(0, LAYERS - 1), "b": LayerRange(1, LAYERS), "c": LayerRange(1, LAYERS)}
        allotments: list[Allotment] = [replace(each, resident=(held[each.device],)) for each in plan.allotments]
        return replace(plan, allotments=tuple(allotments))

    return plan_for


def adaptive_scene(
    controller: Scripted,
    plan_for: Callable[[Sequence[Device]], Plan] | None = None,
    *,
    limits: Limits | None = None,
    channels: Mapping[tuple[str, str], Channel] | None = None,
) -> Scene:
    """A ready cluster of which the micro-batches begin split in the middle."""
    limits = limits or Limits(interval_tokens=4, dwell_tokens=8, back_off_tokens=12)
    adaptive = AdaptiveSettings(controller, KV_BYTES, limits)
    settings = ClusterSettings(adaptive=adaptive, channels=channels or {})
    return Scene(plan_for or wide(), settings, controller.splits).ready()


def adapter_of(scene: Scene) -> Adapter:
    assert scene.cluster.adapter is not None
    return scene.cluster.adapter


def control(scene: Scene, adaptive: AdaptiveSettings) -> None:
    """Lets another controller go on."""
    adapter = adapter_of(scene)
    adapter.around = replace(adapter.around, settings=adaptive)


def moves(scene: Scene) -> list[MoveSplit]:
    """Asked for and not carried out yet, in order."""
    return [send.message for send in scene.sent if isinstance(send.message, MoveSplit)]


def split(scene: Scene, index: int = 0) -> int:
    return [batch for route in scene.cluster.deployment.routes for batch in route.micro_batches][index].split


def state(scene: Scene, index: int = 0) -> tuple[int | None, str | None, str]:
    batches = [batch for route in scene.cluster.deployment.routes for batch in route.micro_batches]
    found = adapter_of(scene).state_of(batches[index])
    return found.proposal, found.guard, found.reason


def tokens(scene: Scene, count: int, session: str | None = None) -> None:
    for _ in range(count):
        scene.now += 0.02
        scene.token(session)
