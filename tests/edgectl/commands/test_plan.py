"""`edgectl plan` as a person types it: the paper's numbers, JSON, files, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

import edgectl.plan_measure
from edgectl.cli import Commands
from edgectl.commands.plan import plan
from edgectl.failures import ExitCode
from edgectl.plan_measure import Measured, MeasuredStage
from planner.answer import make_plan
from planner.plan_json import parse_plan
from planner.types import Plan
from tests.fakes.measured_devices import cluster_profile
from tests.fakes.stored_profiles import model_directory, stored

TESTBED = ("--testbed", "edgeshard-paper")


def run(*arguments: str, env: dict[str, str] | None = None) -> Result:
    app = typer.Typer(cls=Commands, pretty_exceptions_enable=False)
    app.command()(plan)
    app.command("other")(lambda: None)
    return CliRunner().invoke(
        app, ["plan", *arguments], env={"NO_COLOR": "1", "COLUMNS": "200", "TERMINAL_WIDTH": "200", **(env or {})}
    )


def as_json(*arguments: str, env: dict[str, str] | None = None) -> dict[str, Any]:
    result = run(*arguments, "--json", env=env)
    assert result.exit_code == 0, result.output
    assert result.stdout.count("\n") == 1
    return dict(json.loads(result.stdout))


# --- EdgeShard, arXiv 2405.14371, table IV, with no further options ---------------------------------------------------


@pytest.mark.parametrize(("model", "expected"), [("llama2-7b", 75.09), ("llama2-13b", 176.09), ("llama2-70b", 3079.4)])
def test_latency_rows(model: str, expected: float) -> None:
    found = as_json("--model", model, *TESTBED)
    assert found["predicted"]["ms_per_token"] == pytest.approx(expected, rel=2e-4)
    assert found["optimal"] is True
    assert found["gap"] == 0
    assert found["estimated"] is True


def test_the_7b_rows_beside_it() -> None:
    baselines = as_json("--model", "llama2-7b", *TESTBED)["baselines"]
    assert baselines["cloud-edge-even"]["tokens_per_s"] == pytest.approx(7.63, rel=2e-3)
    assert baselines["cloud-edge-even"]["ms_per_token"] == pytest.approx(227.39, rel=2e-4)
    assert baselines["solo"]["ms_per_token"] == pytest.approx(140.35, rel=2e-4)


def test_json_has_what_the_text_says() -> None:
    found = as_json("--model", "llama2-13b", *TESTBED)
    text = run("--model", "llama2-13b", *TESTBED).stdout
    for stage in found["stages"]:
        assert f"{stage['device']} " in text
    assert f"~{found['predicted']['ms_per_token']:,.2f} ms per token" in text
    for sentence in found["advice"]:
        assert sentence in text


def test_every_option_at_once(tmp_path: Path) -> None:
    links = tmp_path / "links.toml"
    links.write_text("[default]\nbandwidth_mbit_per_s = 100\nlatency_ms = 1\n")
    options = "--objective throughput --source rtx-3060 --prompt 16 --tokens 48 --batch 4 --context 512 --pareto"
    more = "--quantize int8 --block-size 64 --codec int8 --privacy source-first --replicas --explain --verify"
    found = as_json(
        "--model",
        "tinyllama-1.1b",
        "--devices",
        "jetson-nano*2,rtx-3060",
        "--links",
        str(links),
        *options.split(),
        *more.split(),
    )
    assert (found["objective"], found["source"], found["batch"]) == ("throughput", "rtx-3060", 4)
    assert (found["quantization"], found["block_size"], found["codec"]) == ("int8", 64, "int8")
    assert (found["prompt"], found["tokens"], found["context"]) == (16, 48, 512)
    assert found["verified"]["ok"] is True
    assert found["explanation"]
    assert found["pareto"]


@pytest.mark.parametrize("objective", ["latency", "throughput", "energy"])
def test_every_objective_is_verified(objective: str) -> None:
    result = run("--model", "llama2-7b", *TESTBED, "--objective", objective, "--verify")
    assert result.exit_code == 0, result.output
    assert "by HiGHS" in result.stdout
    assert "DIFFERS" not in result.stdout


# --- files ------------------------------------------------------------------------------------------------------------


def test_the_plan_file_is_what_serve_reads(tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    result = run("--model", "llama2-7b", *TESTBED, "--out", str(out))
    assert result.exit_code == 0
    assert f"wrote {out}" in result.stderr
    read = parse_plan(out.read_text(encoding="utf-8"))
    assert [stage.device for stage in read.routes[0].stages] == ["agx-0", "agx-1", "cloud-0"]
    refused = run("--model", "llama2-7b", *TESTBED, "--out", str(tmp_path / "nowhere" / "plan.json"))
    assert refused.exit_code == ExitCode.CONFIG
    assert "--out" in refused.stderr


def test_a_picture(tmp_path: Path) -> None:
    picture = tmp_path / "plan.svg"
    assert run("--model", "llama2-7b", *TESTBED, "--plot", str(picture)).exit_code == 0
    assert "<svg" in picture.read_text(encoding="utf-8")


def test_the_newest_profile_is_taken_and_told(tmp_path: Path) -> None:
    path, env = stored(tmp_path, cluster_profile())
    result = run("--model", str(model_directory(tmp_path)), env=env)
    assert result.exit_code == 0, result.output
    assert path.name in result.stdout
    assert "~" not in result.stdout, "everything was measured"


def test_measured_beside_predicted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the cluster; plan_measure's own test has a real one."""
    asked: list[tuple[str, int, int]] = []

    def measure(made: Plan, config: object, model: str, *, prompt_tokens: int, tokens: int) -> Measured:
        asked.append((model, prompt_tokens, tokens))
        stages = tuple(MeasuredStage(stage.device, 1.0, None, None) for stage in made.routes[0].stages)
        return Measured(12.5, 80.0, 80.0, stages, (12.5,))

    monkeypatch.setattr(edgectl.plan_measure, "measure_plan", measure)
    _, env = stored(tmp_path, cluster_profile())
    cluster = tmp_path / "cluster.toml"
    cluster.write_text("")
    directory = model_directory(tmp_path)
    arguments = ("--model", str(directory / "config.json"), "--measure", "--cluster", str(cluster))
    found = as_json(*arguments, env=env)
    assert found["measured"]["ms_per_token"] == pytest.approx(12.5)
    assert asked == [(str(directory), 32, 96)]
    assert "measured  off by" in run(*arguments, env=env).stdout


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "exit_code", "text"),
    [
        (("--model", "lama2-7b", "--devices", "rtx-3090"), ExitCode.CONFIG, "did you mean llama2-7b"),
        (("--model", "llama2-7b", "--devices", "rtx-309"), ExitCode.CONFIG, "did you mean rtx-3090"),
        (("--model", "llama2-7b", "--devices", "rtx-3090*-1"), ExitCode.CONFIG, "a number from 1"),
        (("--model", "llama2-7b", "--devices", "rtx-3090", "--source", "x"), ExitCode.CONFIG, "unknown device 'x'"),
        (("--model", "llama2-7b", "--devices", "rtx-3090", "--prompt", "-3"), ExitCode.USAGE, "--prompt"),
        (("--model", "llama2-7b", "--devices", "rtx-3090", "--batch", "many"), ExitCode.USAGE, "--batch"),
        (("--model", "llama2-7b", "--devices", "rtx-3090", "--batch", "0"), ExitCode.USAGE, "--batch"),
        (("--model", "llama2-7b", "--devices", "rtx-3090", "--objective", "fun"), ExitCode.USAGE, "--objective"),
        (("--model", "llama2-7b", "--devices", "rtx-3090", "--plot", "a.pdf"), ExitCode.USAGE, ".svg or .png"),
        (("--model", "llama2-7b", "--devices", "rtx-3090", "--profile", "x"), ExitCode.USAGE, "--devices"),
        (
            ("--model", "llama3-70b", "--devices", "jetson-nano", "--quantize", "fp32"),
            ExitCode.MEMORY,
            "the source must hold layer 0",
        ),
        (("--model", "llama2-70b", "--devices", "orin-nx-16gb*2"), ExitCode.MEMORY, "all devices together hold"),
    ],
)
def test_bad_input(arguments: tuple[str, ...], exit_code: ExitCode, text: str) -> None:
    result = run(*arguments)
    assert result.exit_code == exit_code, result.output
    assert result.stdout == ""
    assert text in result.stderr


def test_a_disconnected_cluster(tmp_path: Path) -> None:
    links = tmp_path / "links.toml"
    links.write_text("")
    result = run("--model", "llama2-70b", "--devices", "orin-nx-8gb,rtx-5090*4", "--links", str(links))
    assert result.exit_code == ExitCode.MEMORY
    assert "orin-nx-8gb has no link" in result.stderr


def test_a_difference_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planner that errs, here by one in a thousand, is not believed."""
    from dataclasses import replace

    import planner.answer

    def wrong(request: Any) -> Any:
        answer = make_plan(request)
        slower = replace(answer.prediction, ms_per_token=answer.prediction.ms_per_token * 1.001)
        return replace(answer, prediction=slower)

    monkeypatch.setattr(planner.answer, "make_plan", wrong)
    result = run("--model", "llama2-7b", *TESTBED, "--verify", "--json")
    assert result.exit_code == ExitCode.FAILURE
    assert json.loads(result.stdout)["verified"]["ok"] is False
    assert "--verify: ms per token is" in result.stderr


# --- quick ------------------------------------------------------------------------------------------------------------


def test_a_plan_loads_no_solver_and_no_runtime() -> None:
    """What `edgectl plan --testbed` imports decides its time; the numbers are in benchmarks."""
    code = (
        "import sys\n"
        "from edgectl.plan_inputs import PlanOptions, resolve\n"
        "from edgectl.plan_report import describe_plan\n"
        "import edgectl.commands.plan, planner.plan_json\n"
        "from planner.answer import make_plan\n"
        "found = resolve(PlanOptions(model='llama2-13b', testbed='edgeshard-paper'), {}, lambda *_: None)\n"
        "describe_plan(make_plan(found.request))\n"
        "heavy = ('scipy', 'matplotlib', 'onnxruntime', 'onnx', 'torch', 'transformers', 'zmq', 'fastapi', 'rich')\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert loaded.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        ((), ""),
        (("--privacy", "trusted-ends"), "agx-0 has a stage already"),
        (("--objective", "throughput", "--replicas", "--batch", "44"), ""),
    ],
)
def test_a_plan_that_serve_refuses_says_so(options: tuple[str, ...], refused: str) -> None:
    said = run("--model", "llama2-7b", *TESTBED, *options).stderr
    assert ("edgectl serve refuses a plan of this kind" in said) == bool(refused)
    assert refused in said
