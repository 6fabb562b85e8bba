"""The links file: who reaches whom how fast, as written by a person.

    [default]                      # for pairs that are not named; without it they have no link
    bandwidth_mbit_per_s = 940
    latency_ms = 0.2

    [[links]]
    from = "nano"
    to = "desk"
    bandwidth_mbit_per_s = 40      # what is left out is the default's
    both_ways = true               # the default

JSON of the same shape is read as well.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations

import msgspec

from planner.errors import BadLinks, UnknownName
from planner.profile import LinkProfile

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FRAME_BYTES = 100
"""What a frame adds to its payload: header, checksum, the transport's own. Measured links have it in their latency."""

_LEAST_MBIT_PER_S = 1e-6
"""A bit per second: whatever is slower is a mistake, and times must stay finite."""
_LARGEST = 1e9

LAN_MBIT_PER_S = 940.0
LAN_LATENCY_MS = 0.2
"""Gigabit Ethernet with one switch, for clusters that are not measured and come without a links file."""


@dataclass(frozen=True, slots=True)
class _Speed:
    bandwidth_mbit_per_s: float
    latency_ms: float


def parse_links(text: str, devices: Sequence[str], known: Iterable[LinkProfile] = ()) -> tuple[LinkProfile, ...]:
    """Links among `devices`: those of the file, then its default, then those `known` before.

    Raises BadLinks naming the entry: no TOML or JSON, an unknown device or key, a missing or negative number, a pair
    that is named twice.
    """
    table = _table(text)
    _only(table, "top level", ("default", "links"))
    default = None
    if "default" in table:
        section = _object(table["default"], "default")
        _only(section, "default", ("bandwidth_mbit_per_s", "latency_ms"))
        default = _speed(section, "default", None)
    entries = table.get("links", [])
    if not isinstance(entries, list):
        raise BadLinks("links", "must be a list: [[links]]")
    named: dict[tuple[str, str], _Speed] = {}
    for index, entry in enumerate(entries):
        _take(_object(entry, f"links[{index}]"), f"links[{index}]", devices, default, named)
    before = {(link.source, link.destination): link for link in known}
    found = []
    for pair in permutations(devices, 2):
        speed = named.get(pair, default)
        if speed is not None:
            found.append(nominal_link(*pair, speed.bandwidth_mbit_per_s, speed.latency_ms))
        elif pair in before:
            found.append(before[pair])
    return tuple(found)


def lan_links(devices: Sequence[str]) -> tuple[LinkProfile, ...]:
    """Every pair over Gigabit Ethernet."""
    return tuple(nominal_link(a, b, LAN_MBIT_PER_S, LAN_LATENCY_MS) for a, b in permutations(devices, 2))


def nominal_link(source: str, destination: str, bandwidth_mbit_per_s: float, latency_ms: float) -> LinkProfile:
    """A link by its nominal numbers; what a frame adds to its payload goes to the latency, as if measured."""
    bytes_per_ms = bandwidth_mbit_per_s * 1e3 / 8
    return LinkProfile(
        source=source,
        destination=destination,
        latency_ms=latency_ms + FRAME_BYTES / bytes_per_ms,
        bandwidth_bytes_per_s=1e3 * bytes_per_ms,
        estimated=True,
    )


def _table(text: str) -> dict[str, object]:
    try:
        table = msgspec.json.decode(text) if text.lstrip().startswith("{") else tomllib.loads(text)
    except (msgspec.DecodeError, tomllib.TOMLDecodeError, UnicodeError, RecursionError) as problem:
        raise BadLinks("", f"neither TOML nor JSON: {problem}") from None
    return _object(table, "top level")


def _take(
    entry: dict[str, object],
    place: str,
    devices: Sequence[str],
    default: _Speed | None,
    named: dict[tuple[str, str], _Speed],
) -> None:
    """One [[links]] entry into `named`."""
    _only(entry, place, ("from", "to", "bandwidth_mbit_per_s", "latency_ms", "both_ways"))
    ends = []
    for key in ("from", "to"):
        name = entry.get(key)
        if not isinstance(name, str):
            raise BadLinks(f"{place}.{key}", "is missing" if name is None else f"must be a device, it is {name!r}")
        if name not in devices:
            raise BadLinks(f"{place}.{key}", str(UnknownName("device", name, devices)))
        ends.append(name)
    both_ways = entry.get("both_ways", True)
    if not isinstance(both_ways, bool):
        raise BadLinks(f"{place}.both_ways", f"must be true or false, it is {both_ways!r}")
    a, b = ends
    if a == b:
        raise BadLinks(place, f"from {a} to itself")
    speed = _speed(entry, place, default)
    for pair in [(a, b), (b, a)][: 1 + both_ways]:
        if pair in named:
            raise BadLinks(place, f"{pair[0]} to {pair[1]} is there twice")
        named[pair] = speed


def _speed(entry: dict[str, object], place: str, default: _Speed | None) -> _Speed:
    bandwidth = _number(entry, "bandwidth_mbit_per_s", place, default.bandwidth_mbit_per_s if default else None)
    if bandwidth < _LEAST_MBIT_PER_S:
        raise BadLinks(
            f"{place}.bandwidth_mbit_per_s",
            f"must be above 0 (at least {_LEAST_MBIT_PER_S:g}); leave out pairs without a link",
        )
    latency_ms = _number(entry, "latency_ms", place, default.latency_ms if default else None)
    return _Speed(bandwidth, latency_ms)


def _number(entry: dict[str, object], key: str, place: str, default: float | None) -> float:
    value = entry.get(key, default)
    if value is None:
        raise BadLinks(f"{place}.{key}", "is missing, and there is no [default] for it")
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= _LARGEST:
        raise BadLinks(f"{place}.{key}", f"must be a number from 0 to {_LARGEST:g}, it is {value!r}")
    return float(value)


def _object(value: object, place: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise BadLinks(place, "must be a table")
    return value


def _only(table: dict[str, object], place: str, keys: Sequence[str]) -> None:
    for key in table:
        if key not in keys:
            raise BadLinks(place, str(UnknownName("key", key, keys)))
