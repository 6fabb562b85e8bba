"""Chooses the execution provider by making it compute, never by the list of providers.

That list is fixed when ONNX Runtime is built: PyPI's GPU wheel for aarch64 lists CUDA on an Orin, but has no kernel for
it.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper

from agent.compute.graph_writer import MICROSOFT
from agent.compute.onnx_session import (
    CPU,
    CUDA,
    TENSORRT,
    SessionSettings,
    Spinning,
    offered,
    open_session,
    shared_value,
)
from agent.errors import ProviderUnavailable

logger = logging.getLogger(__name__)

PROVIDERS: dict[str, tuple[str, ...]] = {"cpu": (CPU,), "cuda": (CUDA,), "tensorrt": (TENSORRT, CUDA)}
"""Name in agent.toml → ONNX Runtime's, the one that computes first."""

SMALLEST_SHARE = 0.5
"""Below this share of a block's nodes TensorRT's fragments cost more than they gain: plain CUDA is quicker."""

L4T_RELEASE = Path("/etc/nv_tegra_release")
_JETSON_WAYS_OUT = {
    35: "JetPack 5 has no ONNX Runtime new enough (1.20): upgrade to JetPack 6, or set provider cpu",
    36: "JetPack 6: pip install onnxruntime-gpu-extended==1.23.2.12.9 instead of onnxruntime-gpu (CUDA 12.6, sm_87)",
}
_JETPACK_7 = "JetPack 7: build ONNX Runtime with CMAKE_CUDA_ARCHITECTURES=87 (Orin) or 110 (Thor)"


def choose_provider(wanted: str) -> str:
    """`cpu`, `cuda` or `tensorrt`, whichever of the wanted computed something here.

    `auto` takes CUDA if it works and else the CPU, with a warning. Raises ProviderUnavailable when a provider that was
    named does not work, and ValueError for an unknown name.
    """
    if wanted == "auto":
        try:
            probe("cuda")
        except ProviderUnavailable as problem:
            logger.warning("provider_fallback", extra={"provider": "cpu", "problem": str(problem)})
            return "cpu"
        return "cuda"
    probe(wanted)
    return wanted


def session_settings(provider: str, *, threads: int, spin: bool = False, spin_duration_us: int = 0) -> SessionSettings:
    """Settings for every session of an executor on `provider`; `spin` lets threads spin between runs, too."""
    spinning: Spinning = "always" if spin else "within_runs"
    return SessionSettings(threads, _runtime_names(provider), spinning, spin_duration_us)


def probe(provider: str) -> None:
    """Multiply two fp16 matrices on `provider` alone. Raises ProviderUnavailable that names the way out."""
    names = _runtime_names(provider)
    values = np.arange(64, dtype=np.float16).reshape(8, 8) / np.float16(64)
    try:
        session = open_session(_one_node(), SessionSettings(1, names))
        product = np.asarray(session.run(None, {"x": values})[0])
    except Exception as problem:  # whatever a driver, a missing library or a missing kernel raises means no
        raise ProviderUnavailable(f"{names[0]}: {_first_line(problem)}; {way_out()}") from problem
    if not np.allclose(product, values @ values, rtol=1e-2, atol=1e-2):
        raise ProviderUnavailable(f"{names[0]}: computed a wrong product; {way_out()}")


def way_out(release: Path = L4T_RELEASE) -> str:
    """What to install so that a GPU works on this machine, by its Jetson Linux release if it has one."""
    try:
        # First line: "# R36 (release), REVISION: 4.0, ..."
        major = int(release.read_text(encoding="ascii").split("R", 1)[1].split(None, 1)[0])
    except (OSError, ValueError, IndexError):
        return (
            f"install a GPU build of ONNX Runtime for this machine (this one offers {offered()}), or set provider cpu"
        )
    return _JETSON_WAYS_OUT.get(major, _JETPACK_7)


def require_share(model: ModelProto, settings: SessionSettings, weights: Sequence[Mapping[str, NDArray[Any]]]) -> float:
    """The share of the block's nodes the settings' provider takes, found by one profiled run.

    Raises ProviderUnavailable when it is under `SMALLEST_SHARE`.
    """
    with tempfile.TemporaryDirectory() as directory:
        session = open_session(model, settings, weights, profile_prefix=str(Path(directory) / "share"))
        session.run(None, {value.name: _smallest_feed(value) for value in model.graph.input})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    share = provider_share(events, settings.provider, len(model.graph.node))
    logger.info("provider_share", extra={"provider": settings.provider, "share": round(share, 3)})
    if share < SMALLEST_SHARE:
        raise ProviderUnavailable(
            f"{settings.provider} took {share:.0%} of a block's nodes, at least {SMALLEST_SHARE:.0%} are wanted; "
            "set provider cuda"
        )
    return share


def provider_share(events: Sequence[Mapping[str, Any]], provider: str, nodes: int) -> float:
    """Share of a graph's `nodes` on `provider`, from the events of a profile.

    A provider that compiles runs many nodes as one, so the nodes of the others are counted.
    """
    others = {
        event["name"]
        for event in events
        if event.get("cat") == "Node" and event.get("args", {}).get("provider", provider) != provider
    }
    return max(0.0, 1.0 - len(others) / nodes)


def window_excess(settings: SessionSettings, *, half: bool) -> int:
    """How many tokens more than `local_window_size` the provider's attention sees: 1 on ONNX Runtime 1.23's CPU, 0 now.

    Measured for prefill and decode with equal scores and values 0, 1, 2, ...: the mean then tells the window. Raises
    ProviderUnavailable when the two differ, for no window would be right then.
    """
    window, dtype, device = 2, np.float16 if half else np.float32, "cpu" if settings.on_cpu else "cuda"
    session = open_session(_one_attention(window, half), settings)
    pools = [shared_value(np.zeros(_PROBE_POOL, dtype), device) for _ in range(2)]
    seen = []
    for start, stop in ((0, 4), (4, 5)):
        value = np.broadcast_to(np.arange(start, stop, dtype=dtype)[None, :, None], (1, stop - start, _PROBE_HEAD))
        zeros = np.zeros_like(value)
        io = session.io_binding()
        lengths = np.array([[stop - 1], [stop]], np.int32)
        feeds: dict[str, NDArray[Any]] = {"q": zeros, "k": zeros, "v": np.ascontiguousarray(value)}
        for name, array in (feeds | {"seqlens_k": lengths[0], "total_len": lengths[1]}).items():
            io.bind_cpu_input(name, array)
        for part, pool in zip("kv", pools, strict=True):
            io.bind_ortvalue_input(f"past_{part}", pool)
            io.bind_ortvalue_output(f"present_{part}", pool)
        io.bind_output("y", "cpu")
        session.run_with_iobinding(io)
        outputs = dict(zip(("present_k", "present_v", "y"), io.get_outputs(), strict=True))
        mean = float(outputs["y"].numpy()[0, -1, 0])
        seen.append(round(2 * (stop - 1 - mean)) + 1)
    if seen[0] != seen[1]:
        raise ProviderUnavailable(
            f"{settings.provider}: a sliding window of {window} is {seen[0]} tokens in prefill, {seen[1]} in decode; "
            f"set provider cpu, or {way_out()}"
        )
    return seen[0] - window


_PROBE_HEAD = 64
_PROBE_POOL = (1, 1, 8, _PROBE_HEAD)


def _one_attention(window: int, half: bool) -> ModelProto:
    """One head of GroupQueryAttention without rotation."""
    element = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    row, pool = (1, "s", _PROBE_HEAD), _PROBE_POOL
    names = ["q", "k", "v", "past_k", "past_v", "seqlens_k", "total_len"]
    inputs = [helper.make_tensor_value_info(name, element, row if len(name) == 1 else pool) for name in names[:5]]
    inputs += [helper.make_tensor_value_info(name, TensorProto.INT32, [1]) for name in names[5:]]
    outputs = [helper.make_tensor_value_info("y", element, row)]
    outputs += [helper.make_tensor_value_info(name, element, pool) for name in ("present_k", "present_v")]
    node = helper.make_node(
        "GroupQueryAttention",
        names,
        [output.name for output in outputs],
        domain=MICROSOFT,
        num_heads=1,
        kv_num_heads=1,
        local_window_size=window,
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(helper.make_graph([node], "window", inputs, outputs), opset_imports=opsets, ir_version=10)


def _runtime_names(provider: str) -> tuple[str, ...]:
    try:
        return PROVIDERS[provider]
    except KeyError:
        raise ValueError(f"provider {provider!r} is unknown; these are known: {', '.join(PROVIDERS)}") from None


def _one_node() -> ModelProto:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT16, [8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT16, [8, 8])
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "x"], ["y"])], "probe", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def _smallest_feed(value: Any) -> NDArray[Any]:
    """One row, one token, an empty past: 1 for every symbolic dimension; total_len is 1 as well."""
    kind = value.type.tensor_type
    shape = [dimension.dim_value or 1 for dimension in kind.shape.dim]
    dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
    return np.ones(shape, dtype) if value.name == "total_len" else np.zeros(shape, dtype)


def _first_line(problem: Exception) -> str:
    return str(problem).strip().split("\n", 1)[0] or type(problem).__name__
