"""Profiles as tables, differences and CSV."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import pytest

from edgectl.profile_report import (
    CSV_HEADER,
    describe_difference,
    describe_profile,
    joules_per_token,
    profile_csv,
)
from tests.fakes.measured_devices import cluster_profile, device_profile, link_profile


def lines_with(text: str, *words: str) -> list[str]:
    return [line for line in text.splitlines() if all(word in line.split() for word in words)]


def test_devices_and_links_in_tables_with_their_units() -> None:
    text = describe_profile(cluster_profile())
    (device,) = lines_with(text, "b", "cpu")
    assert device.split()[2:] == ["2.000", "25.60", "1.00", "1,024", "MiB", "5.0", "20.0", "0.320"]
    link, _ = lines_with(text, "a", "b", "0.250")
    assert link.split() == ["a", "b", "0.250", "1,000", "0.500", "0.750", "0.010"]
    assert "m, 8 layers, int4 block 32, boundary fp16" in text
    assert "measured 2026-11-21T12:00:00Z by edgectl 1.0.0" in text


def test_what_could_not_be_measured_is_a_dash_with_a_reason_never_zero() -> None:
    profile = cluster_profile()
    dark = tuple(device_profile(device.name, power=False) for device in profile.devices)
    text = describe_profile(replace(profile, devices=dark))
    (row,) = lines_with(text, "a", "cpu")
    assert row.split()[-3:] == ["-", "-", "-"]
    assert "a, b: no power: no tegrastats on PATH" in text


def test_facts_that_nobody_knows_are_named_in_one_line() -> None:
    profile = cluster_profile()
    puzzled = replace(profile.devices[0], missing={"l4t": "no Jetson", "gpu": "none", "memory": "of which kind"})
    text = describe_profile(replace(profile, devices=(puzzled, profile.devices[1])))
    assert "unknown of some device: gpu, l4t, memory; --json has the reasons" in text
    assert "no Jetson" not in text
    unchecked = describe_profile(replace(profile, devices=(replace(puzzled, memory=None), profile.devices[1])))
    assert "a: no memory: of which kind" in unchecked


def test_estimates_are_marked() -> None:
    profile = cluster_profile()
    guessed = (replace(profile.devices[0], estimated=True), *profile.devices[1:])
    links = tuple(replace(link, estimated=True) for link in profile.links)
    text = describe_profile(replace(profile, devices=guessed, links=links))
    assert "a (estimate)" in text
    assert "b (estimate)" in text


def test_joules_of_a_token_are_those_of_all_layers() -> None:
    profile = cluster_profile()
    assert joules_per_token(profile, profile.devices[0]) == pytest.approx(0.02 * 8)
    assert joules_per_token(profile, device_profile("a", power=False)) is None


def test_a_profile_differs_in_nothing_from_itself() -> None:
    assert describe_difference(cluster_profile(), cluster_profile()) == "no difference"


def test_differences_are_named_with_both_values_and_the_change() -> None:
    before = cluster_profile({"a": 1.0, "b": 2.0})
    after = cluster_profile({"a": 1.5, "c": 2.0}, created="2026-11-22T12:00:00Z")
    text = describe_difference(before, after)
    assert "b: only in the first" in text
    assert "c: only in the second" in text
    assert "created: 2026-11-21T12:00:00Z → 2026-11-22T12:00:00Z" in text
    (decode,) = [line for line in text.splitlines() if "a decode ms, 1 rows at 32" in line]
    assert decode.split()[-4:] == ["1.000", "1.500", "+50", "%"]
    assert "a prefill ms, 128" in text


def test_links_facts_and_memory_are_compared() -> None:
    before = cluster_profile()
    a = replace(before.devices[0], memory_bytes=2 << 30, fingerprint={"power_mode": "30W", "board": None})
    slow = tuple(replace(link, latency_ms=1.0, bandwidth_bytes_per_s=1e6) for link in before.links)
    text = describe_difference(before, replace(before, devices=(a, before.devices[1]), links=slow))
    for part in (
        "a → b latency ms",
        "b → a Mbit/s",
        "a memory MiB",
        "a: power_mode MAXN → 30W",
        "a: board Jetson AGX Orin → unknown",
    ):
        assert part in text


def test_noise_is_no_difference() -> None:
    before = cluster_profile({"a": 1.0, "b": 1.0})
    assert describe_difference(before, cluster_profile({"a": 1.04, "b": 0.96})) == "no difference"


def test_every_point_is_a_line_of_the_csv() -> None:
    profile = cluster_profile()
    rows = list(csv.DictReader(io.StringIO(profile_csv(profile))))
    assert tuple(rows[0]) == CSV_HEADER
    points = sum(len(each.decode) + len(each.prefill) + len(each.head) + 2 for each in profile.devices)
    assert len(rows) == points + len(profile.links)
    decode = next(row for row in rows if (row["kind"], row["device"], row["rows"]) == ("decode", "b", "4"))
    assert (float(decode["ms"]), decode["context"], decode["samples"]) == (8.0, "32", "9")
    link = next(row for row in rows if row["kind"] == "link")
    assert (link["peer"], float(link["bandwidth_bytes_per_s"])) == ("b", 125e6)
    assert link_profile("a", "b").latency_ms == float(link["ms"])
