"""Why nothing fits: which layers lack how many MiB, and where."""

from __future__ import annotations

from dataclasses import dataclass

from planner.cost import CostModel
from planner.stage_memory import MemoryParts

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
    """Causes for a person, most telling first; for a model that no placement on its devices fits."""
    layers, parts = model.spec.num_layers, model.memory_parts()
    rooms = [_room(model, members, parts) for members in model.classes]
    own, trusted = rooms[0], model.privacy == "trusted-ends"
    if trusted:
        what = "first and last layer and the head"
        need = parts.stage + parts.first + parts.last + min(layers, 2) * parts.layer
    else:
        what, need = "layer 0", parts.stage + parts.first + parts.layer
    with_head = parts.stage + parts.layer + parts.last
    best = max(rooms, key=lambda room: room.available)
    held = _most_layers(rooms, parts, trusted)
    if own.available < need:
        cause = f"{model.source}: the source must hold {what}: {_lacking(need, own.available)}"
    elif best.available < with_head:
        cause = f"{_who(best)}: layer {layers - 1} and the head: {_lacking(with_head, best.available)}"
    elif held >= layers:
        cause = _unreachable(model)
    else:
        alone = not trusted and not any(room.last for room in rooms[1:])
        who = f"only {model.source} can hold the head, and with it" if alone else "all devices together hold"
        lacking = _mib((layers - held) * parts.layer)
        cause = f"{who} {held} of {layers} layers; layers [{held}, {layers}) lack {lacking} MiB"
    return [cause, *(_room_text(room, parts, layers, parts.first if room is own else 0) for room in rooms)]


def _most_layers(rooms: list[_Room], parts: MemoryParts, trusted: bool) -> int:
    """Most layers a route holds where every link is there: on the source, one last device, and all between.

    With trusted ends, or where no other device holds the head, the source is first and last.
    """
    own, others = rooms[0], rooms[1:]
    both_ends = _layers_in(own.available, parts, parts.first + parts.last)
    between = sum(len(room.names) * room.inner for room in others)
    lasts = [room.last - room.inner for room in others if room.last]
    if trusted:
        return both_ends + between
    return _layers_in(own.available, parts, parts.first) + between + max(lasts) if lasts else both_ends


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
    return f"{_mib(need)} MiB, {available // MIB} available, {_mib(need) - available // MIB} are lacking"


def _unreachable(model: CostModel) -> str:
    reached = [link.destination for link in model.profile.links if link.source == model.source]
    where = f"{model.source} has links to {', '.join(reached)}" if reached else f"{model.source} has no link"
    return f"memory would do, but no chain of links from {model.source} and back joins enough of it; {where}"


def _mib(size_bytes: int) -> int:
    return -(-size_bytes // MIB)
