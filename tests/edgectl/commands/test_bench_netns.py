"""`edgectl bench netns`: what it refuses before anything starts, and what it prints and writes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from edgectl import netns_bench
from edgectl.failures import ExitCode
from edgectl.netns_bench import Setting, describe
from tests.fakes.command_line import edgectl
from tests.fakes.fake_engine import MODEL_DIR

ROWS = [{"way": "loopback", "tokens_per_s": 100.04, "ms_per_token": 9.876, "failed": 0}]


def test_a_person_who_is_not_root_is_told_so_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    refused = edgectl("bench", "netns", str(MODEL_DIR))
    assert refused.exit_code == ExitCode.UNAVAILABLE
    assert "need root" in refused.stderr
    assert "--ways loopback,emulated" in refused.stderr


def test_wrong_words_are_named() -> None:
    refused = edgectl("bench", "netns", str(MODEL_DIR), "--ways", "loopback,carrier-pigeon")
    assert refused.exit_code == ExitCode.CONFIG
    assert "carrier-pigeon is none of loopback, emulated, namespaces" in refused.stderr
    refused = edgectl("bench", "netns", str(MODEL_DIR), "--rate", "fast")
    assert refused.exit_code == ExitCode.USAGE


def test_what_is_measured_is_printed_and_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Setting] = []
    monkeypatch.setattr(netns_bench, "compare", lambda ways, setting, *_: asked.append(setting) or ROWS)
    out = tmp_path / "found.json"
    options = ("--ways", "loopback", "--rate", "20 Mbit", "--codec", "int8", "--concurrency", "4")
    done = edgectl("bench", "netns", str(MODEL_DIR), *options, "--out", str(out))
    assert done.exit_code == ExitCode.OK, done.stderr
    assert done.stdout == describe(ROWS) + "\n"
    assert json.loads(out.read_text())["ways"] == ROWS
    assert asked[0].uplink.bytes_per_s == 2.5e6
    assert asked[0].serve == ("--quantize", "fp32", "--sessions", "4", "--codec", "int8")
    printed = edgectl("bench", "netns", str(MODEL_DIR), "--ways", "loopback", "--json")
    assert json.loads(printed.stdout)["ways"] == ROWS
