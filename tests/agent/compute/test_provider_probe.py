from __future__ import annotations

import logging
from pathlib import Path

import pytest

from agent.compute import provider_probe
from agent.compute.graph_writer import GraphOptions
from agent.compute.layer_graph import build_block
from agent.compute.onnx_session import CPU, TENSORRT, SessionSettings
from agent.compute.provider_probe import (
    choose_provider,
    probe,
    provider_share,
    require_share,
    session_settings,
    way_out,
    window_excess,
)
from agent.compute.quantize import make_arrays
from agent.errors import ProviderUnavailable
from planner.types import LayerRange
from tests.fakes.random_weights import SMALL, RandomWeights


def test_the_cpu_computes() -> None:
    assert choose_provider("cpu") == "cpu"


def test_auto_falls_back_loudly(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert choose_provider("auto") in {"cpu", "cuda"}
    assert ("provider_fallback" in caplog.text) == (choose_provider("auto") == "cpu")


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_named_provider_that_does_not_compute_is_an_error(provider: str) -> None:
    if choose_provider("auto") == "cuda":
        pytest.skip("this machine has a GPU that computes")
    with pytest.raises(ProviderUnavailable, match="set provider cpu"):
        choose_provider(provider)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="'rocm' is unknown; these are known: cpu, cuda, tensorrt"):
        probe("rocm")


@pytest.mark.parametrize(
    ("release", "hint"),
    [
        ("# R36 (release), REVISION: 4.0, GCID: 1", "onnxruntime-gpu-extended==1.23.2.12.9"),
        ("# R35 (release), REVISION: 5.0", "JetPack 6"),
        ("# R39 (release), REVISION: 2.0", "CMAKE_CUDA_ARCHITECTURES=87"),
        ("nonsense", "GPU build of ONNX Runtime"),
    ],
)
def test_the_way_out_names_the_wheel_of_the_jetson_release(release: str, hint: str, tmp_path: Path) -> None:
    path = tmp_path / "nv_tegra_release"
    path.write_text(release)
    assert hint in way_out(path)
    assert "GPU build" in way_out(tmp_path / "missing")


def test_settings_name_the_providers() -> None:
    assert session_settings("tensorrt", threads=3).providers[0] == TENSORRT
    assert session_settings("cpu", threads=3) == SessionSettings(3, (CPU,), "within_runs")
    assert session_settings("cpu", threads=1, spin=True, spin_duration_us=9).spinning == "always"


def test_window_is_measured() -> None:
    """0 on current ONNX Runtime, 1 on 1.23; test_parity holds the result against transformers."""
    assert window_excess(SessionSettings(1), half=False) in {0, 1}


def test_share_counts_the_nodes_of_others() -> None:
    events = [
        {"cat": "Node", "name": f"{name}_kernel_time", "args": {"provider": provider}}
        for name, provider in (("trt_0", TENSORRT), ("gqa", "CUDA"), ("norm", "CUDA"), ("gqa", "CUDA"))
    ]
    events += [{"cat": "Session", "name": "model_run"}, {"cat": "Node", "name": "fence", "args": {}}]
    assert provider_share(events, TENSORRT, nodes=8) == pytest.approx(0.75)
    assert provider_share(events, "CUDA", nodes=4) == pytest.approx(0.75)


def test_share_comes_from_a_run_and_is_refused_under_half(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = build_block(SMALL, LayerRange(0, 1), GraphOptions("fp32", 32, "fp16", 9))
    weights = [make_arrays(weight, RandomWeights().tensor) for weight in graph.weights]
    assert require_share(graph.model, SessionSettings(1), weights) == 1.0
    monkeypatch.setattr(provider_probe, "SMALLEST_SHARE", 1.5)
    with pytest.raises(ProviderUnavailable, match=r"took 100% of a block's nodes.*set provider cuda"):
        require_share(graph.model, SessionSettings(1), weights)
