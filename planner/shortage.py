"""Why nothing fits: which layers lack how many MiB, and where."""

from __future__ import annotations

from dataclasses import dataclass

from planner.cost import CostModel
from planner.stage_memory import MemoryParts
from planner.types import LayerRange

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class _Room:
    """How many layers one device of a class holds."""

    names: tuple[str, ...]
    available: int
    inner: int
    """None of them the first or the last."""
    last: int
    """With the last one and the head among them."""


def shortages(model: CostModel) -> list[str]:
    """Causes for a person, most telling first; for a model that no placement on its devices fits.

    Devices of a route are distinct, so it holds at most what the source, one last device with the head and all
    others hold together. Where that would do, links are missing.
    """
    layers, parts = model.spec.num_layers, model.memory_parts()
    rooms = [_room(model, members, parts) for members in model.classes]
    own, others = rooms[0], rooms[1:]
    causes = []
    held = 0
    if model.privacy == "trusted-ends":
        need = parts.first + parts.last
        held = _layers_in(own.available, parts, need) + sum(len(room.names) * room.inner for room in others)
        least, what = parts.stage + need + min(layers, 2) * parts.layer, "first and last layer and the head"
    else:
        held = _layers_in(own.available, parts, parts.first)
        lasts = [room.last - room.inner for room in others if room.last]
        if lasts and held:
            held += sum(len(room.names) * room.inner for room in others) + max(lasts)
        least, what = parts.stage + parts.first + parts.layer, "layer 0"
    if own.available < least:
        causes.append(f"{model.source}: the source must hold {what}: {_lacking(least, own.available)}")
        held = 0
    elif model.privacy != "trusted-ends" and not any(room.last for room in rooms):
        best = max(rooms, key=lambda room: room.available)
        need = parts.stage + parts.layer + parts.last
        causes.append(f"{_who(best)}: layer {layers - 1} and the head: {_lacking(need, best.available)}")
    elif held < layers:
        rest = LayerRange(held, layers)
        lacking = len(rest) * parts.layer + (0 if held > own.inner else parts.last)
        together = "all devices together hold" if others else f"{model.source} is the only device, it holds"
        causes.append(f"{together} {held} of {layers} layers; layers {rest} lack {_mib(lacking)} MiB")
    else:
        causes.append(_unreachable(model))
    return causes + [_room_text(room, parts, layers, parts.first if room is own else 0) for room in rooms]


def _layers_in(available: int, parts: MemoryParts, beside: int = 0) -> int:
    return max(0, (available - parts.stage - beside) // parts.layer)


def _room(model: CostModel, members: tuple[str, ...], parts: MemoryParts) -> _Room:
    available = model.memory_available_bytes(members[0])
    return _Room(members, available, _layers_in(available, parts), _layers_in(available, parts, parts.last))


def _room_text(room: _Room, parts: MemoryParts, layers: int, beside: int) -> str:
    held = _layers_in(room.available, parts, beside)
    text = f"{_who(room)}: holds {min(held, layers)} layers in {room.available // MIB} MiB"
    if held >= layers:
        return text + " without the head" if room.last < layers else text
    return text + f", one more lacks {_mib(parts.stage + beside + (held + 1) * parts.layer - room.available)} MiB"


def _who(room: _Room) -> str:
    others = len(room.names) - 1
    return f"{room.names[0]} (and {others} like it)" if others else room.names[0]


def _lacking(need: int, available: int) -> str:
    return f"{_mib(need)} MiB, {available // MIB} available, {_mib(need - available)} are lacking"


def _unreachable(model: CostModel) -> str:
    reached = [link.destination for link in model.profile.links if link.source == model.source]
    where = f"{model.source} has links to {', '.join(reached)}" if reached else f"{model.source} has no link"
    return f"memory would do, but no chain of links from {model.source} and back joins enough of it; {where}"


def _mib(size_bytes: int) -> int:
    return -(-size_bytes // MIB)
