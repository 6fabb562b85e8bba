"""Makes a plan whose split points can move: what a route's first two devices hold more, as far as memory goes. Pure.

A split point is how many layers the source of a route has before the next device's begin. To move between splits
without loading anything, the source holds all layers before the last of them and the next device all behind the first;
so a split is possible exactly where both hold what it takes. A route of one device has no split, and gets none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from planner.errors import Infeasible
from planner.memory import memory_bytes
from planner.model_spec import ModelSpec
from planner.types import Allotment, LayerRange, Plan, Route, Stage

MIB = 1 << 20
WAY_OUT = "take fewer --sessions or a shorter --context, or serve without --policy"


@dataclass(frozen=True, slots=True)
class Widened:
    """A plan whose devices hold what its splits take, and what a person should know about it."""

    plan: Plan
    notes: tuple[str, ...] = ()


def split_points_of(plan: Plan, route: Route, splits: Iterable[int]) -> tuple[int, ...]:
    """Those of `splits` at which a route can be cut between its first two devices, by what these hold; ascending."""
    if len(route.stages) < 2:
        return ()
    source, following = route.stages[:2]
    stop = following.layers.stop
    return tuple(
        split
        for split in sorted(set(splits))
        if 0 < split < stop
        and _holds(plan, source.device, LayerRange(0, split))
        and _holds(plan, following.device, LayerRange(split, stop))
    )


def route_at(route: Route, split: int) -> Route:
    """The same route, its source's part ending at `split`. Raises ValueError where the next device's would be empty."""
    if len(route.stages) < 2 or route.stages[0].layers.stop == split:
        return route
    source, following, *rest = route.stages
    moved = (
        Stage(source.device, LayerRange(0, split)),
        Stage(following.device, LayerRange(split, following.layers.stop)),
    )
    return replace(route, stages=(*moved, *rest))


def widen(plan: Plan, spec: ModelSpec, splits: Sequence[int]) -> Widened:
    """The plan with allotments for as many of `splits` as fit, each route cut at the one nearest to where it was.

    What does not fit is dropped: of a source that is too small its largest splits, of a next device the smallest.
    Raises Infeasible where a route has two devices and no split is left for it.
    """
    if all(len(route.stages) < 2 for route in plan.routes):
        note = "the plan has no route of two devices: nothing can be split, and the policy has nothing to do"
        return Widened(plan, (note,))
    fitting = _Fitting(plan, spec, splits)
    fitting.run()
    routes = tuple(fitting.cut(number, route) for number, route in enumerate(plan.routes))
    allotments = tuple(fitting.allotment(each.device) for each in plan.allotments)
    if routes != plan.routes:
        # What was predicted is about other layer ranges.
        plan = replace(plan, predicted={}, costs=())
    return Widened(replace(plan, routes=routes, allotments=allotments), tuple(fitting.notes))


def _holds(plan: Plan, device: str, layers: LayerRange) -> bool:
    return any(resident.covers(layers) for resident in plan.allotment(device).resident)


@dataclass
class _Fitting:
    """Which splits each route keeps, while devices that are too full lose theirs."""

    plan: Plan
    spec: ModelSpec
    splits: Sequence[int]
    kept: dict[int, list[int]] = field(default_factory=dict)
    """By the number of a route that has two devices; ascending."""
    causes: dict[int, list[str]] = field(default_factory=dict)
    """Why a route lost splits."""
    notes: list[str] = field(default_factory=list)

    def run(self) -> None:
        for number, route in enumerate(self.plan.routes):
            if len(route.stages) > 1:
                stop = route.stages[1].layers.stop
                self.kept[number] = sorted({split for split in self.splits if 0 < split < stop})
                self.causes[number] = []
                outside = sorted({split for split in self.splits if not 0 < split < stop})
                if outside:
                    detail = f"{route.stages[1].device} ends at layer {stop}"
                    self._dropped(number, outside, detail)
        while any(self._drop_one(each) for each in self.plan.allotments):
            pass  # One at a time: what one device drops makes room on its neighbour too.
        for number, causes in self.causes.items():
            if not self.kept[number]:
                raise Infeasible(f"no split of the policy is possible on {self._name(number)}; {WAY_OUT}", causes)
            self.notes += causes
            own = self.plan.routes[number].stages[0].layers.stop
            begin = self.begin(number)
            listed = ", ".join(map(str, self.kept[number]))
            place = f"{begin}" if begin == own else f"{begin}, since the plan's {own} is not the policy's"
            if len(self.kept[number]) == 1:
                place += "; with one split the policy has nothing to choose"
            self.notes.append(f"{self._name(number)} may be split at {listed} and begins at {place}")

    def begin(self, number: int) -> int:
        """The split nearest to the plan's own, the lower one of two."""
        own = self.plan.routes[number].stages[0].layers.stop
        return min(self.kept[number], key=lambda split: (abs(split - own), split))

    def cut(self, number: int, route: Route) -> Route:
        return route_at(route, self.begin(number)) if number in self.kept else route

    def allotment(self, device: str) -> Allotment:
        """Raises KeyError for a device the plan does not use."""
        planned = self.plan.allotment(device)
        resident = self._resident(planned)
        total = sum(self._need(layers, planned.slots) for layers in resident)
        return replace(planned, resident=resident, memory_bytes=total)

    def _need(self, layers: LayerRange, slots: int) -> int:
        plan = self.plan
        return memory_bytes(
            self.spec,
            layers,
            quantization=plan.quantization,
            block_size=plan.block_size,
            slots=slots,
            context=plan.context,
        )

    def _resident(self, planned: Allotment) -> tuple[LayerRange, ...]:
        """What a device holds: its part of every route at every split, and what the plan gave it beyond its parts."""
        parts: set[LayerRange] = set()
        own: set[LayerRange] = set()
        for number, route in enumerate(self.plan.routes):
            for place, stage in enumerate(route.stages):
                if stage.device == planned.device:
                    own.add(stage.layers)
                    parts.add(self._part(number, place, stage))
        return _merged(parts | (set(planned.resident) - own))

    def _part(self, number: int, place: int, stage: Stage) -> LayerRange:
        kept = self.kept.get(number)
        if not kept or place > 1:
            return stage.layers
        return LayerRange(0, kept[-1]) if place == 0 else LayerRange(kept[0], stage.layers.stop)

    def _drop_one(self, planned: Allotment) -> bool:
        """Takes a split away that makes a full device smaller; False where it is not full, or nothing would help."""
        allotment = self.allotment(planned.device)
        short = allotment.memory_bytes - planned.memory_available_bytes
        if short <= 0:
            return False
        for number, kept in self.kept.items():
            names = [stage.device for stage in self.plan.routes[number].stages[:2]]
            if not kept or planned.device not in names:
                continue
            split = kept.pop() if planned.device == names[0] else kept.pop(0)
            held = " ".join(str(layers) for layers in allotment.resident)
            detail = f"{planned.device} is {-(-short // MIB)} MiB short for layers {held}"
            self._dropped(number, [split], detail)
            return True
        return False

    def _dropped(self, number: int, splits: Sequence[int], because: str) -> None:
        listed = ", ".join(map(str, splits))
        self.causes[number].append(f"{self._name(number)} goes without split {listed}: {because}")

    def _name(self, number: int) -> str:
        return "the route " + " ".join(stage.device for stage in self.plan.routes[number].stages)


def _merged(ranges: Iterable[LayerRange]) -> tuple[LayerRange, ...]:
    """Ranges that share a layer become one: a layer is loaded once."""
    merged: list[LayerRange] = []
    for layers in sorted(ranges):
        if merged and layers.start < merged[-1].stop:
            merged[-1] = LayerRange(merged[-1].start, max(merged[-1].stop, layers.stop))
        else:
            merged.append(layers)
    return tuple(merged)


def cuts_of(resident: Iterable[LayerRange], points: Mapping[int, Sequence[int]]) -> tuple[int, ...]:
    """Split points (by route) that lie inside what a device holds: a block has to begin there."""
    ranges = tuple(resident)
    found = {split for splits in points.values() for split in splits}
    return tuple(sorted(split for split in found if any(layers.start < split < layers.stop for layers in ranges)))
