"""Profiles as files: stable JSON, read with every field checked.

The file is the dataclasses of `profile` under their own names, with `schema` beside them. Keys are sorted and numbers
of measurements rounded, so that two profiles can be compared line by line.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import fields
from typing import TypeVar

import msgspec

from planner.errors import BadProfile
from planner.model_spec import ModelSpec
from planner.profile import SCHEMA, ClusterProfile

_Value = TypeVar("_Value", bound=Hashable)

SIGNIFICANT_DIGITS = 6
"""Of measured numbers; no clock of ours is better."""
MOST_BYTES = 64 << 20
"""Of a file; one with 200 devices and all their links has 12 MiB."""
_LARGEST_NUMBER = 1e15
_LEAST_BANDWIDTH = 1e-3
_LARGEST_SIZE = 1 << 24
_MOST_LAYERS = 4096


def dump_profile(profile: ClusterProfile) -> str:
    """JSON that parses to the same profile, but for rounding; the same profile always gives the same text."""
    table = msgspec.to_builtins(profile)
    for name in ("devices", "links"):
        table[name] = [_rounded(entry) for entry in table[name]]
    return json.dumps({"schema": SCHEMA, **table}, indent=2, sort_keys=True, allow_nan=False) + "\n"


def parse_profile(text: str) -> ClusterProfile:
    """Raises BadProfile naming the field, or the schema when it is not ours."""
    if len(text) > MOST_BYTES:
        raise BadProfile("", f"{len(text)} characters, at most {MOST_BYTES}")
    try:
        raw = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as problem:
        raise BadProfile("", f"not JSON: {problem}{_near(text, str(problem))}") from None
    if not isinstance(raw, dict):
        raise BadProfile("", "not a JSON object")
    schema = raw.get("schema")
    if schema != SCHEMA or isinstance(schema, bool):
        hint = "measure again with `edgectl profile`, or use the version that wrote it"
        raise BadProfile("schema", f"is {schema!r}, this version reads {SCHEMA}; {hint}")
    try:
        profile = msgspec.convert(raw, ClusterProfile)
    except (msgspec.ValidationError, RecursionError) as problem:
        raise _named(str(problem)) from None
    for name in ("devices", "links"):
        _check_numbers(raw[name], name)
    _check_spec(profile.spec)
    _check_points(profile)
    return profile


def _near(text: str, problem: str) -> str:
    """What stands where the decoder stopped, such as a NaN with its key."""
    found = re.search(r"\(byte (\d+)\)", problem)
    if found is None:
        return ""
    read = text.encode("utf-8", "replace")[: int(found[1]) + 8].decode("utf-8", "replace")
    return f", line {1 + read.count(chr(10))}: {' '.join(read[-60:].split())}"


def _rounded(value: object) -> object:
    if isinstance(value, float):
        return float(f"{value:.{SIGNIFICANT_DIGITS}g}")
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(entry) for entry in value]
    return value


def _named(problem: str) -> BadProfile:
    """msgspec says `Expected int - at $.devices[0].name`; the place goes first."""
    said, _, place = problem.partition(" - at `$")
    return BadProfile(place.strip("`.") or "top level", said)


def _check_spec(spec: ModelSpec) -> None:
    """Sizes in the range of a real model: sums over layers and sessions must stay countable."""
    for field in fields(spec):
        value = getattr(spec, field.name)
        if isinstance(value, int) and not isinstance(value, bool):
            most = _MOST_LAYERS if field.name == "num_layers" else _LARGEST_SIZE
            if not 1 <= value <= most:
                raise BadProfile(f"spec.{field.name}", f"must be from 1 to {most}, it is {value}")
    if len(spec.sliding_windows) != spec.num_layers:
        raise BadProfile("spec.sliding_windows", f"{len(spec.sliding_windows)} entries for {spec.num_layers} layers")


def _check_points(profile: ClusterProfile) -> None:
    """Nothing is there twice, and sizes are such that bytes stay 64-bit integers."""
    if not 1 <= profile.block_size <= _LARGEST_SIZE:
        raise BadProfile("block_size", f"must be from 1 to {_LARGEST_SIZE}, it is {profile.block_size}")
    for index, device in enumerate(profile.devices):
        repeated: dict[str, Sequence[object]] = {
            "decode": _repeats([(point.rows, point.context) for point in device.decode]),
            "prefill": _repeats([point.tokens for point in device.prefill]),
            "head": _repeats([point.rows for point in device.head]),
        }
        for name, repeats in repeated.items():
            if repeats:
                raise BadProfile(f"devices[{index}].{name}", f"two points for {repeats[0]}")
    for index, link in enumerate(profile.links):
        if link.bandwidth_bytes_per_s < _LEAST_BANDWIDTH:
            raise BadProfile(f"links[{index}].bandwidth_bytes_per_s", f"must be at least {_LEAST_BANDWIDTH:g}")
    repeats = _repeats([f"{link.source} to {link.destination}" for link in profile.links])
    if repeats:
        raise BadProfile("links", f"{repeats[0]} is there twice")


def _repeats(values: Sequence[_Value]) -> list[_Value]:
    return [value for value, count in Counter(values).items() if count > 1]


def _check_numbers(value: object, place: str) -> None:
    """Numbers that no measurement gives, and that sums would overflow with."""
    if isinstance(value, dict):
        for key, entry in value.items():
            _check_numbers(entry, f"{place}.{key}")
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            _check_numbers(entry, f"{place}[{index}]")
    elif isinstance(value, (int, float)) and abs(value) > _LARGEST_NUMBER:
        raise BadProfile(place, f"must be at most {_LARGEST_NUMBER:g}, it is {value!r}")
