"""The tegrastats parser: every recorded line whole, values read off by hand, 100,000 damaged lines without a raise."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.device.sensors.tegrastats_line import Core, Engine, Rail, parse_line
from tests.fakes.tegrastats import recorded_lines

DATA = Path(__file__).parents[3] / "data"
LINES = {f"S{number:02}": line for number, line in enumerate(recorded_lines(), start=1)}
EXPECTED: dict[str, dict[str, Any]] = msgspec.toml.decode((DATA / "tegrastats_expected.toml").read_text("utf-8"))
MIB = 1 << 20


def bytes_of(mib: list[int]) -> tuple[int | None, ...]:
    return tuple(int(amount * MIB) for amount in mib) if mib else (None, None)


@pytest.mark.parametrize("name", LINES)
def test_every_recorded_line_is_understood_whole(name: str) -> None:
    line = parse_line(LINES[name])
    assert line.unknown == ()
    assert line.ram_total_bytes
    assert line.cores
    assert line.temperatures_c


def test_the_file_has_its_28_lines_and_says_where_they_come_from() -> None:
    text = (DATA / "tegrastats_samples.txt").read_text("utf-8")
    comments = re.findall(r"^# (S\d\d) ", text, flags=re.MULTILINE)
    assert comments == list(LINES) == [f"S{number:02}" for number in range(1, 29)]


@pytest.mark.parametrize("name", EXPECTED)
def test_values_read_off_by_hand(name: str) -> None:
    line, expected = parse_line(LINES[name]), EXPECTED[name]
    assert line.stamp == expected.get("stamp", "")
    assert (line.ram_used_bytes, line.ram_total_bytes) == bytes_of(expected["ram"])
    count, size_mib = expected["largest_free_blocks"]
    assert line.largest_free_blocks == (count, size_mib * MIB)
    assert (line.swap_used_bytes, line.swap_total_bytes) == bytes_of(expected.get("swap", []))
    assert line.cores == tuple(Core(core[0] / 100, core[1]) if core else None for core in expected["cores"])
    assert line.mts_shares == (tuple(share / 100 for share in expected["mts"]) if "mts" in expected else None)
    on_line = {name: degrees for name, degrees in line.temperatures_c.items() if degrees is not None}
    assert on_line == expected["temperatures"]
    assert sorted(line.temperatures_c.keys() - on_line.keys()) == expected.get("offline", [])
    assert line.rails == tuple(Rail(*rail, *[None] * (4 - len(rail))) for rail in expected["rails"])


@pytest.mark.parametrize("name", EXPECTED)
def test_engines_read_off_by_hand(name: str) -> None:
    engines, expected = dict(parse_line(LINES[name]).engines), EXPECTED[name]
    gpu = engines.pop("GR3D", None)
    if "gpu" in expected:
        load, *clocks = expected["gpu"]
        assert gpu == Engine(True, None if load == "" else load / 100, tuple(clocks))
    else:
        assert gpu is None
    memory = engines.pop("EMC", None)
    if "emc" in expected:
        assert memory == Engine(True, expected["emc"][0] / 100, (expected["emc"][1],))
    else:
        assert memory is None or memory == Engine(True, None, ())
    loads = {name: load / 100 for name, load in expected.get("loads", {}).items()}
    assert {name: engine for name, engine in engines.items() if engine.is_on} == {
        name: Engine(True, loads.get(name), tuple(clocks)) for name, clocks in expected.get("engines", {}).items()
    }
    assert sorted(name for name, engine in engines.items() if not engine.is_on) == sorted(
        expected.get("engines_off", [])
    )


def test_negative_rails_are_kept() -> None:
    line = parse_line("VDD_GPU -392mW/-12mW/0mW VDD_CPU_SOC_MSS 4165mW/4165mW")
    assert line.rails == (Rail("VDD_GPU", -392, -12, 0), Rail("VDD_CPU_SOC_MSS", 4165, 4165, None))


@pytest.mark.parametrize(
    ("text", "unknown"),
    [
        ("RAM 12/", ("RAM", "12/")),
        ("VDD_IN 52x/4 GPU@40C", ("VDD_IN", "52x/4")),
        ("GR3D_FREQ 101%@76", ("GR3D_FREQ", "101%@76")),
        ("CPU [5%@1224,4%@", ("CPU", "[5%@1224,4%@")),
        ("cpu@50.0.1C", ("cpu@50.0.1C",)),
        ("\x00\x01", ("\x00\x01",)),
    ],
)
def test_what_is_not_understood_is_kept_apart(text: str, unknown: tuple[str, ...]) -> None:
    assert parse_line(text).unknown == unknown


def test_after_garbage_the_rest_of_the_line_is_read() -> None:
    line = parse_line("RAM 19?3/3964MB gpu@40C VDD_IN 1/2")
    assert line.temperatures_c == {"gpu": 40.0}
    assert line.rails == (Rail("VDD_IN", 1, 2, None),)


def test_tokens_in_any_order_say_the_same() -> None:
    tokens = ["gpu@51C", "GR3D_FREQ 71%@1300", "VDD_IN 14025/14416", "MTS fg 1% bg 9%", "RAM 1/2MB (lfb 1x2MB)"]
    assert parse_line(" ".join(tokens)) == parse_line("  ".join(reversed(tokens)) + "\r\n")


def mutate(line: str, rng: random.Random) -> str:
    """One to three of: a character changed, a piece cut out, doubled, moved from another place, or the end missing."""
    for _ in range(rng.randint(1, 3)):
        start = rng.randrange(len(line) + 1)
        stop = min(len(line), start + rng.randint(0, 12))
        kind = rng.randrange(5)
        if kind == 0:
            line = line[:start] + rng.choice("0123456789-/@%[]() ,.CMmW\n\0é\u2028\u0661") + line[start + 1 :]
        elif kind == 1:
            line = line[:start] + line[stop:]
        elif kind == 2:
            line = line[:stop] + line[start:]
        elif kind == 3:
            at = rng.randrange(len(line) + 1)
            line = line[:at] + line[start:stop] + line[at:]
        else:
            line = line[:start]
    return line


def test_a_hundred_thousand_damaged_lines_never_raise() -> None:
    rng = random.Random(20260815)
    lines = list(LINES.values())
    damaged = 0
    for number in range(100_000):
        line = parse_line(mutate(lines[number % len(lines)], rng))
        damaged += bool(line.unknown)
        assert all(degrees is None or degrees > -200 for degrees in line.temperatures_c.values())
        assert all(engine.load is None or 0 <= engine.load <= 1 for engine in line.engines.values())
    assert damaged > 30_000  # else the mutations test nothing


@given(st.text(max_size=200))
def test_any_text_parses(text: str) -> None:
    parse_line(text)


def test_a_long_line_of_garbage_takes_linear_time() -> None:
    assert len(parse_line("[ " * 50_000).unknown) == 50_000
    assert parse_line("9" * 100_000 + "mW/" + "9" * 5000).rails == ()
