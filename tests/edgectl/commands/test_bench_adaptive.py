"""`edgectl bench adaptive`: what it refuses before anything starts, what it asks for, what it prints and writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgectl.adaptive_bench import setting
from edgectl.adaptive_bench.bench import Comparison
from edgectl.adaptive_bench.report import describe_comparison
from edgectl.adaptive_bench.setting import Wish
from edgectl.failures import ExitCode
from rl.trace import dump_trace
from tests.fakes.adaptive_comparison import CHANNEL, compared
from tests.fakes.command_line import edgectl
from tests.fakes.fake_engine import MODEL_DIR

COMMAND = ("bench", "adaptive", "--model", str(MODEL_DIR), "--quality", "table.json")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Wish]:
    """Wishes that the command made; what it shows is of a scripted comparison."""
    wishes: list[Wish] = []
    found = compared(tmp_path)

    def fulfil(wish: Wish, *_: object) -> Comparison:
        wishes.append(wish)
        return found

    monkeypatch.setattr(setting, "fulfil", fulfil)
    return wishes


def test_what_is_compared_is_printed_and_written(asked: list[Wish], tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    done = edgectl(*COMMAND, "--tokens", "100", "--sigma", "2", "--hold", "8", "--out", str(out))
    assert done.exit_code == ExitCode.OK, done.stderr
    assert done.stdout == describe_comparison(compared(tmp_path)) + "\n"
    (wish,) = asked
    assert len(wish.channel.states) == 132
    assert {state.sigma for state in wish.channel.states} == {2.0}
    assert wish.controllers == ()
    assert wish.conceals_as_table
    assert [row["controller"] for row in json.loads(out.read_text())["controllers"]] == ["static", "table", "policy"]


def test_options_reach_the_comparison(asked: list[Wish], tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    trace.write_text(dump_trace(CHANNEL))
    options = ("--trace", str(trace), "--controllers", "static, table", "--codec", "int8", "--latency-ms", "7")
    done = edgectl(*COMMAND, *options, "--policy", "p.onnx", "--json")
    assert done.exit_code == ExitCode.OK, done.stderr
    (wish,) = asked
    assert (wish.channel, wish.controllers, wish.latency_ms) == (CHANNEL, ("static", "table"), 7.0)
    assert not wish.conceals_as_table
    assert (wish.options.codec, wish.policy) == ("int8", Path("p.onnx"))
    assert json.loads(done.stdout)["best_static_in_hindsight"] in {2, 4}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--trace", "nowhere.json"), "--trace nowhere.json"),
        (("--sigma", "inf"), "a walk"),
    ],
)
def test_what_makes_no_channel_is_refused(asked: list[Wish], options: tuple[str, str], words: str) -> None:
    refused = edgectl(*COMMAND, *options)
    assert refused.exit_code == ExitCode.CONFIG
    assert words in refused.stderr
    assert asked == []


def test_what_is_no_shape_and_no_mitigation_is_refused(asked: list[Wish]) -> None:
    assert edgectl(*COMMAND, "--m", "0.4").exit_code == ExitCode.USAGE
    assert edgectl(*COMMAND, "--mitigation", "prayer").exit_code == ExitCode.USAGE
    assert asked == []


def test_a_mitigation_that_is_asked_for_is_the_channels(asked: list[Wish]) -> None:
    assert edgectl(*COMMAND, "--mitigation", "lmmse").exit_code == ExitCode.OK
    (wish,) = asked
    assert (wish.channel.concealment, wish.conceals_as_table) == ("lmmse", False)
