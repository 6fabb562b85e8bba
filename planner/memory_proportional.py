"""Layers in proportion to memory: the plan that needs no measurements, and a baseline of the planners that have them.

Pure arithmetic on integers and fractions, so the same cluster gives the same plan on every machine.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import accumulate

from planner.errors import Infeasible
from planner.memory import memory_bytes
from planner.model_spec import ModelSpec
from planner.types import Allotment, BoundaryType, Codec, Device, LayerRange, Plan, Quantization, Route, Stage

MIB = 1 << 20
MAX_ROWS = 16
"""Of a micro-batch: what a data frame holds."""
_NO_ROOM = "the layers do not fit"


def memory_proportional(
    model: str,
    spec: ModelSpec,
    devices: Sequence[Device],
    *,
    quantization: Quantization,
    block_size: int,
    boundary: BoundaryType,
    codec: Codec,
    context: int,
    sessions: int = 1,
    source: str | None = None,
) -> Plan:
    """One route over the devices in the given order, `source` first, each with layers in proportion to its memory.

    The head counts as the layers it weighs, on the last device. A device that cannot hold one layer is left out, and
    of more devices than layers those with the least memory are. There is room for `sessions` at least, in as many
    micro-batches as stages, so that every stage has one to work on (EdgeShard, arXiv 2405.14371, section IV-C).
    Raises Infeasible with one cause per device, and ValueError for an unknown or repeated device or no session.
    """
    if sessions < 1:
        raise ValueError(f"there must be room for a session at least, not {sessions}")
    need = partial(memory_bytes, spec, quantization=quantization, block_size=block_size, context=context)
    slots = sessions
    while True:
        try:
            placed = proportional_layers(devices, spec.num_layers, partial(need, slots=slots), source)
        except Infeasible as no_room:
            raise Infeasible(
                f"{model} ({spec.num_layers} layers, {quantization}, {slots} slots of {context} tokens) does not fit; "
                "take fewer sessions, a shorter context or int4, or add a device",
                no_room.causes,
            ) from None
        micro_batches, rows = micro_batches_of(sessions, len(placed))
        if micro_batches * rows <= slots:
            break
        slots = micro_batches * rows  # Rounded up to whole rows: a few more than asked for.
    route = Route(tuple(Stage(device.name, layers) for device, layers in placed), micro_batches, rows)
    slots = micro_batches * rows
    return Plan(
        model=model,
        quantization=quantization,
        block_size=block_size,
        boundary=boundary,
        codec=codec,
        context=context,
        routes=(route,),
        allotments=tuple(
            Allotment(device.name, (layers,), slots, need(layers, slots=slots), device.memory_bytes)
            for device, layers in placed
        ),
    )


def micro_batches_of(sessions: int, stages: int) -> tuple[int, int]:
    """Micro-batches and rows of each: no fewer than the sessions, one micro-batch per stage where that many are."""
    micro_batches = max(min(stages, sessions), -(-sessions // MAX_ROWS))
    return micro_batches, -(-sessions // micro_batches)


def proportional_layers(
    devices: Sequence[Device], num_layers: int, need: Callable[[LayerRange], int], source: str | None = None
) -> tuple[tuple[Device, LayerRange], ...]:
    """Who gets which layers, `need` being the bytes a layer range takes, affine in its length.

    Raises Infeasible with one cause per device, and ValueError for an unknown or repeated device.
    """
    used, ranges = _place(_source_first(devices, source), _Need(num_layers, need), source)
    return tuple(zip(used, ranges, strict=True))


@dataclass(frozen=True, slots=True)
class _Need:
    """Bytes a layer range takes, all else being settled; what the first and the last layer add is theirs alone."""

    num_layers: int
    of: Callable[[LayerRange], int]

    def of_count(self, count: int, is_first: bool, is_last: bool) -> int:
        """`count` layers, with the head when they are the last of the model and what layer 0 adds when the first."""
        start = self.num_layers - count if is_last else 0 if is_first else 1
        return self.of(LayerRange(start, start + count))

    def head_in_layers(self) -> Fraction:
        """What the last device holds beside its layers, counted in layers; the model has at least two."""
        stop = self.num_layers
        layer_bytes = self.of(LayerRange(stop - 2, stop)) - self.of(LayerRange(stop - 1, stop))
        without_head = self.of(LayerRange(stop - 2, stop - 1))
        return Fraction(self.of(LayerRange(stop - 1, stop)) - without_head, layer_bytes)


def _source_first(devices: Sequence[Device], source: str | None) -> list[Device]:
    names = [device.name for device in devices]
    if len(set(names)) != len(names):
        raise ValueError(f"a device is named twice: {', '.join(names)}")
    if source is None:
        return list(devices)
    if source not in names:
        raise ValueError(f"source {source} is not among the devices: {', '.join(names)}")
    return sorted(devices, key=lambda device: device.name != source)


def _place(devices: list[Device], need: _Need, source: str | None) -> tuple[list[Device], list[LayerRange]]:
    """The devices that get layers, and which. Raises Infeasible."""
    num_layers = need.num_layers
    used = _largest(devices, num_layers, source)
    causes: list[str] = []
    while used:
        most = _most_layers(used, need)
        without_room = [place for place, layers in enumerate(most) if layers == 0]
        if not without_room:
            break
        # One at a time: when the last device goes, the head falls to another one.
        place = without_room[0]
        dropped = used.pop(place)
        is_last = place == len(used)
        short_bytes = need.of_count(1, place == 0, is_last) - dropped.memory_bytes
        causes.append(f"{dropped.name}: {_mib(short_bytes)} short for one layer{' and the head' if is_last else ''}")
        if dropped.name == source:
            raise Infeasible(_NO_ROOM, [f"{causes[-1]}, and the source must hold one"])
    if not used:
        raise Infeasible(_NO_ROOM, causes or ["there is no device"])
    if len(used) == 1:
        counts = [num_layers]
    else:
        fits = sum(most) >= num_layers
        counts = _counts(used, num_layers, need.head_in_layers(), most if fits else [num_layers] * len(used))
    stops = list(accumulate(counts))
    ranges = [LayerRange(stop - count, stop) for count, stop in zip(counts, stops, strict=True)]
    if sum(most) < num_layers:
        raise Infeasible(_NO_ROOM, causes + _shortages(used, ranges, need))
    return used, ranges


def _largest(devices: list[Device], count: int, source: str | None) -> list[Device]:
    """At most `count` devices, those with the most memory and the source, in their order."""
    ranked = sorted(devices, key=lambda device: (device.name != source, -device.memory_bytes))
    kept = {device.name for device in ranked[:count]}
    return [device for device in devices if device.name in kept]


def _most_layers(devices: Sequence[Device], need: _Need) -> list[int]:
    """How many layers each device can hold while every other one has at least one."""
    most = range(1, need.num_layers - len(devices) + 2)
    last = len(devices) - 1
    return [
        bisect_right(most, device.memory_bytes, key=partial(need.of_count, is_first=place == 0, is_last=place == last))
        for place, device in enumerate(devices)
    ]


def _counts(devices: Sequence[Device], num_layers: int, head: Fraction, most: Sequence[int]) -> list[int]:
    """Layers per device: in proportion to memory, from one to `most`, rounded by the largest remainder.

    Bounds are met as in CSS flexible boxes: of the devices that break theirs, those on the side that breaks more are
    fixed to it, and the others share again.
    """
    last = len(devices) - 1
    fixed: dict[int, Fraction] = {}
    while True:
        free = [place for place in range(len(devices)) if place not in fixed]
        memory = sum(devices[place].memory_bytes for place in free)
        to_share = num_layers - sum(fixed.values()) + (head if last in free else 0)
        wanted = {
            place: to_share * Fraction(devices[place].memory_bytes, memory) - (head if place == last else 0)
            for place in free
        }
        bounded = {place: min(max(share, Fraction(1)), Fraction(most[place])) for place, share in wanted.items()}
        excess = sum(bounded.values()) - sum(wanted.values())
        if excess == 0:
            return _rounded([{**fixed, **bounded}[place] for place in range(len(devices))], num_layers)
        for place in free:
            if (bounded[place] - wanted[place]) * excess > 0:
                fixed[place] = bounded[place]


def _rounded(shares: Sequence[Fraction], total: int) -> list[int]:
    """Integers next to `shares` that sum to `total`: the largest remainders are rounded up, the first of equal ones."""
    counts = [math.floor(share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda place: counts[place] - shares[place])
    for place in by_remainder[: total - sum(counts)]:
        counts[place] += 1
    return counts


def _shortages(devices: Sequence[Device], ranges: Sequence[LayerRange], need: _Need) -> list[str]:
    """What each device lacks for its share of a model that does not fit."""
    return [
        f"{device.name}: {_mib(need.of(layers) - device.memory_bytes)} short for layers {layers}"
        for device, layers in zip(devices, ranges, strict=True)
        if need.of(layers) > device.memory_bytes
    ]


def _mib(size_bytes: int) -> str:
    """Rounded up: what is short by a byte is short."""
    return f"{-(-size_bytes // MIB)} MiB"
