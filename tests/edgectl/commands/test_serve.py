"""What `edgectl serve` refuses before it opens a socket, each with its exit code."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.wire.security import generate_keys
from edgectl.failures import ExitCode
from rl.export import write_policy
from tests.fakes.command_line import edgectl
from tests.fakes.fake_engine import MODEL_DIR
from tests.fakes.small_policy import deeper_when_lossy, small_card


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    edgectl("init", "--dir", str(tmp_path))
    path = tmp_path / "cluster.toml"
    edgectl("device", "add", "agx-1", generate_keys().public, "--cluster", str(path))
    return path


def serve(cluster: Path, *flags: str, model: str = str(MODEL_DIR)) -> tuple[int, str]:
    result = edgectl("serve", "--cluster", str(cluster), "--model", model, *flags)
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    return result.exit_code, result.stderr


@pytest.mark.parametrize(
    ("flags", "exit_code", "message"),
    [
        (("--devices", "agx-1,agx-7"), ExitCode.USAGE, "--devices agx-7: cluster.toml has agx-1"),
        (("--source", "agx-7"), ExitCode.USAGE, "--source agx-7 is not among the devices agx-1"),
        (("--context", "9999"), ExitCode.USAGE, "outside 3 to 2048"),
        (("--min-devices", "2"), ExitCode.USAGE, "outside 1 to 1"),
        (("--quantize", "int3"), ExitCode.USAGE, "int3"),
        (("--http", "0.0.0.0:8080"), ExitCode.CONFIG, "without an API key"),
        (("--http", "8080"), ExitCode.CONFIG, "command line: coordinator.http"),
    ],
)
def test_what_cannot_be_served_is_said_at_once(
    cluster: Path, flags: tuple[str, ...], exit_code: ExitCode, message: str
) -> None:
    code, text = serve(cluster, *flags)
    assert code == exit_code
    assert message in text


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--quantize", "int4"), "--quantize"),
        (("--devices", "agx-1", "--min-devices", "1"), "--devices, --min-devices"),
        (("--block-size", "32"), "--block-size"),
    ],
)
def test_what_a_plan_has_settled_is_not_asked_for_again(cluster: Path, flags: tuple[str, ...], named: str) -> None:
    code, text = serve(cluster, "--plan", "plan.json", *flags)
    assert code == ExitCode.USAGE
    assert f"{named}: the plan says so already" in text


def test_a_plan_that_is_not_there(cluster: Path) -> None:
    code, text = serve(cluster, "--plan", "/absent/plan.json")
    assert code == ExitCode.CONFIG
    assert "/absent/plan.json" in text


def test_a_model_that_is_not_there(cluster: Path) -> None:
    code, text = serve(cluster, model="/absent/model")
    assert code == ExitCode.MODEL
    assert "/absent/model: no such directory" in text


def test_a_model_we_do_not_build(cluster: Path, tmp_path: Path) -> None:
    other = tmp_path / "gpt"
    other.mkdir()
    (other / "config.json").write_text('{"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}')
    code, text = serve(cluster, model=str(other))
    assert code == ExitCode.MODEL
    assert "llama" in text.lower()


def test_a_cluster_without_devices(tmp_path: Path) -> None:
    edgectl("init", "--dir", str(tmp_path))
    code, text = serve(tmp_path / "cluster.toml")
    assert code == ExitCode.CONFIG
    assert "lists no device" in text


def test_no_cluster_at_all(tmp_path: Path) -> None:
    code, text = serve(tmp_path / "absent.toml")
    assert code == ExitCode.CONFIG
    assert "edgectl init" in text


@pytest.mark.parametrize(
    ("flags", "exit_code", "message"),
    [
        (("--shadow",), ExitCode.USAGE, "--shadow: nothing moves splits without --policy FILE"),
        (("--controller", "table", "--dwell", "8"), ExitCode.USAGE, "--controller, --dwell: nothing moves splits"),
        (("--policy", "absent.onnx"), ExitCode.CONFIG, "absent.onnx: No such file"),
        (("--policy", "absent.json"), ExitCode.CONFIG, "absent.json: No such file"),
        (("--policy", "p.onnx", "--controller", "oracle"), ExitCode.USAGE, "oracle"),
        (("--policy", "p.onnx", "--decide-every", "0"), ExitCode.USAGE, "--decide-every 0 is outside 1 to"),
        (("--policy", "p.onnx", "--dwell", "-5"), ExitCode.USAGE, "--dwell -5 is outside 0 to"),
        (("--policy", "p.onnx", "--move-weight", "nan"), ExitCode.USAGE, "--move-weight nan is outside"),
        (("--policy", "t.json", "--controller", "policy"), ExitCode.CONFIG, "t.json is no .onnx file"),
    ],
)
def test_a_policy_that_cannot_work_is_said_at_once(
    cluster: Path, flags: tuple[str, ...], exit_code: ExitCode, message: str
) -> None:
    code, text = serve(cluster, *flags)
    assert code == exit_code
    assert message in text


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"{}", b'{"schema": 1}', b"[]", b"\xff\xfe{"])
@pytest.mark.parametrize("name", ["p.onnx", "t.json"])
def test_a_policy_file_that_is_none_is_named_and_crashes_nothing(
    cluster: Path, tmp_path: Path, name: str, content: bytes
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    code, text = serve(cluster, "--policy", str(path))
    assert code == ExitCode.CONFIG
    assert name in text


def test_a_policy_for_another_number_of_layers_is_refused_by_name(cluster: Path, tmp_path: Path) -> None:
    path = tmp_path / "policy.onnx"
    write_policy(path, deeper_when_lossy(), small_card(model="wide-48l", num_layers=48, digest=""))
    code, text = serve(cluster, "--policy", str(path))
    assert code == ExitCode.CONFIG
    assert "policy.onnx: the policy was trained for 48 layers (wide-48l)" in text
