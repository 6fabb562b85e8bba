"""The text of one tegrastats line: a pure parser that takes any text and never raises.

Tokens may come in any order and any may be absent; what is not understood is skipped to the next space and kept in
`unknown`. The forms differ by board, release and privilege, see docs/sensors.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, NamedTuple

OFFLINE_C = -200.0
"""A sensor without power reads -256."""

_INT = r"[0-9]{1,9}"
_SIGNED = rf"-?{_INT}"
_PERCENT = r"(?:100|[0-9]{1,2})%"
_MHZ = rf"(?:{_INT}|\[{_INT}(?:,{_INT})*\])"
_DEGREES = rf"{_SIGNED}(?:\.[0-9]{{1,9}})?"
_CORE = rf"(?:off|{_PERCENT}@{_INT})"
_NAME = r"[A-Za-z][A-Za-z0-9_-]*"
_TOKEN = re.compile(
    r"(?:"
    r"(?P<stamp>[0-9]{2}-[0-9]{2}-[0-9]{4} [0-9]{2}:[0-9]{2}:[0-9]{2})"
    rf"|(?P<ram>RAM (?P<ram_used>{_INT})/(?P<ram_total>{_INT})(?P<ram_unit>[kM])B"
    rf" \(lfb (?P<lfb_count>{_INT})x(?P<lfb_size>{_INT})(?P<lfb_unit>[kM])B\))"
    rf"|(?P<swap>SWAP (?P<swap_used>{_INT})/(?P<swap_total>{_INT})MB \(cached (?P<swap_cached>{_INT})MB\))"
    rf"|(?P<iram>IRAM {_INT}/{_INT}kB ?\(lfb {_INT}kB\))"
    rf"|(?P<cpu>CPU \[(?P<cores>{_CORE}(?:,{_CORE})*)\])"
    rf"|(?P<mts>MTS fg (?P<mts_foreground>{_PERCENT}) bg (?P<mts_background>{_PERCENT}))"
    rf"|(?P<temperature>(?P<zone>{_NAME})@(?P<degrees>{_DEGREES})C(?:/{_DEGREES}C)?)"
    rf"|(?P<rail>(?P<rail_name>{_NAME}) (?P<now>{_SIGNED})(?:mW)?/(?P<mean>{_SIGNED})(?:mW)?"
    rf"(?:/(?P<peak>{_SIGNED})(?:mW)?)?)"
    rf"|(?P<engine>(?P<engine_name>{_NAME}) (?:(?P<off>off)|(?P<plain_mhz>{_INT})"
    rf"|(?P<load>{_PERCENT})(?:@(?P<loaded_mhz>{_MHZ}))?|@(?P<mhz>{_MHZ})))"
    r")(?=\s|$)"
)
"""The order of attempts matters: `GPU 621/621` is a rail and `GPU@26.5C` a temperature, neither is an engine."""

_WORD = re.compile(r"\S+")


class Core(NamedTuple):
    load: float
    """0 to 1."""
    clock_mhz: int


class Engine(NamedTuple):
    """GR3D (the GPU), EMC (the memory controller), and the video and other units."""

    is_on: bool
    load: float | None = None
    clocks_mhz: tuple[int, ...] = ()
    """One, or one for each part; empty when not told."""


class Rail(NamedTuple):
    """Milliwatts. Only `now_mw` is instantaneous; the others are tegrastats' own since it started."""

    name: str
    now_mw: int
    mean_mw: int
    peak_mw: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TegrastatsLine:
    stamp: str = ""
    """The device's wall clock as printed; never a measure of intervals."""
    ram_used_bytes: int | None = None
    ram_total_bytes: int | None = None
    largest_free_blocks: tuple[int, int] | None = None
    """(how many, bytes of each): `lfb`."""
    swap_used_bytes: int | None = None
    swap_total_bytes: int | None = None
    cores: tuple[Core | None, ...] = ()
    """None is a core that is switched off."""
    mts_shares: tuple[float, float] | None = None
    """Foreground and background time of the TX2's and Xavier's code translation, 0 to 1."""
    engines: dict[str, Engine] = field(default_factory=dict)
    """By name without `_FREQ`."""
    temperatures_c: dict[str, float | None] = field(default_factory=dict)
    """By name in lower case; None is a sensor that is offline."""
    rails: tuple[Rail, ...] = ()
    """In the line's order; names may repeat (NC)."""
    unknown: tuple[str, ...] = ()


_KILO = {"k": 1 << 10, "M": 1 << 20}


def parse_line(text: str) -> TegrastatsLine:
    """What the line says; of half a line or garbage, what of it is whole."""
    values: dict[str, Any] = {}
    engines: dict[str, Engine] = {}
    temperatures: dict[str, float | None] = {}
    rails: list[Rail] = []
    unknown: list[str] = []
    end = 0
    while (word := _WORD.search(text, end)) is not None:
        match = _TOKEN.match(text, word.start())
        if match is None:
            unknown.append(word[0])
            end = word.end()
            continue
        end = match.end()
        kind = match.lastgroup
        if kind == "temperature":
            degrees = float(match["degrees"])
            temperatures[match["zone"].lower()] = degrees if degrees > OFFLINE_C else None
        elif kind == "rail":
            peak = match["peak"]
            rails.append(Rail(match["rail_name"], int(match["now"]), int(match["mean"]), int(peak) if peak else None))
        elif kind == "engine":
            name = match["engine_name"].removesuffix("_FREQ")
            engines[name] = _engine(name, match)
        elif kind is not None:
            values.update(_field(kind, match))
    return TegrastatsLine(
        engines=engines, temperatures_c=temperatures, rails=tuple(rails), unknown=tuple(unknown), **values
    )


def _engine(name: str, match: re.Match[str]) -> Engine:
    if match["off"]:
        return Engine(is_on=False)
    clocks = match["plain_mhz"] or match["loaded_mhz"] or match["mhz"] or ""
    load = _share(match["load"]) if match["load"] else None
    if name == "EMC" and not clocks:
        load = None  # without root always 0 %: no measurement
    return Engine(True, load, tuple(int(clock) for clock in clocks.strip("[]").split(",") if clock))


def _field(kind: str, match: re.Match[str]) -> dict[str, Any]:
    """The fields of TegrastatsLine that a token of this kind fills."""
    if kind == "ram":
        unit = _KILO[match["ram_unit"]]
        return {
            "ram_used_bytes": int(match["ram_used"]) * unit,
            "ram_total_bytes": int(match["ram_total"]) * unit,
            "largest_free_blocks": (int(match["lfb_count"]), int(match["lfb_size"]) * _KILO[match["lfb_unit"]]),
        }
    if kind == "swap":
        return {"swap_used_bytes": int(match["swap_used"]) << 20, "swap_total_bytes": int(match["swap_total"]) << 20}
    if kind == "cpu":
        return {"cores": tuple(_core(core) for core in match["cores"].split(","))}
    if kind == "mts":
        return {"mts_shares": (_share(match["mts_foreground"]), _share(match["mts_background"]))}
    if kind == "stamp":
        return {"stamp": match["stamp"]}
    return {}


def _core(text: str) -> Core | None:
    if text == "off":
        return None
    load, _, clock = text.partition("@")
    return Core(_share(load), int(clock))


def _share(percent: str) -> float:
    return int(percent.removesuffix("%")) / 100
