"""A channel's realisation as text: what records and replays a fading link.

One JSON object with the fields of `planner.channel.Channel` under their own names. A state's fields that have their
defaults may be left out.
"""

from __future__ import annotations

import json
from dataclasses import fields

import msgspec

from planner.channel import MAX_STATES, Channel, ChannelState

SCHEMA = 1
MAX_CHARACTERS = MAX_STATES * 256
"""A state has at most some 150."""


class BadTrace(ValueError):
    """A trace that cannot be read: the field is named."""

    code = "bad_trace"

    def __init__(self, place: str, problem: str) -> None:
        super().__init__(f"channel trace: {place}: {problem}" if place else f"channel trace: {problem}")
        self.place = place


def dump_trace(channel: Channel) -> str:
    """Text that parses to the same channel; the same channel always gives the same text, one state per line."""
    head = {field.name: getattr(channel, field.name) for field in fields(Channel) if field.name != "states"}
    lines = [json.dumps(_without_defaults(state), allow_nan=False) for state in channel.states]
    body = ",\n".join(f"  {line}" for line in lines)
    return json.dumps({"schema": SCHEMA, **head}, allow_nan=False)[:-1] + f', "states": [\n{body}\n]}}\n'


def parse_trace(text: str) -> Channel:
    """Raises BadTrace naming the field."""
    if len(text) > MAX_CHARACTERS:
        raise BadTrace("", f"{len(text)} characters, at most {MAX_CHARACTERS}")
    try:
        raw = msgspec.json.decode(text.encode(errors="replace"))
        if not isinstance(raw, dict):
            raise BadTrace("", "not a JSON object")
        schema = raw.pop("schema", None)
        if schema != SCHEMA or isinstance(schema, bool):
            raise BadTrace("schema", f"is {schema!r}, this version reads {SCHEMA}")
        _refuse_unknown("", raw, Channel)
        states = raw.get("states")
        for number, state in enumerate(states if isinstance(states, list) else []):
            _refuse_unknown(f"states[{number}]", state, ChannelState)
        return msgspec.convert(raw, Channel)
    except (msgspec.DecodeError, msgspec.ValidationError, RecursionError) as problem:
        what, _, place = str(problem).partition(" - at `$")
        raise BadTrace(place.strip("`.").lstrip("."), what) from None


def _refuse_unknown(place: str, raw: object, kind: type[Channel | ChannelState]) -> None:
    """A misspelt loss must not become a clean channel. Raises BadTrace."""
    known = {field.name for field in fields(kind)}
    strange = sorted(str(key) for key in raw if key not in known) if isinstance(raw, dict) else []
    if strange:
        raise BadTrace(place, f"{strange[0]} is none of {', '.join(sorted(known))}")


def _without_defaults(state: ChannelState) -> dict[str, float | None]:
    return {
        field.name: getattr(state, field.name)
        for field in fields(ChannelState)
        if getattr(state, field.name) != field.default
    }
