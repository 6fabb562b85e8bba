"""The one place that imports ONNX Runtime: sessions, their options and weights, and its quantizers.

Telemetry is switched off before the import: the Linux wheels report home by default.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnxruntime as ort  # type: ignore[import-untyped]
from numpy.typing import NDArray
from onnx import ModelProto
from onnxruntime.capi import onnxruntime_pybind11_state  # type: ignore[import-untyped]

from agent.errors import ProviderUnavailable

quantize_4bits: Callable[..., None] = onnxruntime_pybind11_state.quantize_matmul_4bits
quantize_8bits: Callable[..., None] = onnxruntime_pybind11_state.quantize_matmul_8bits

RUNTIME_VERSION: str = ort.__version__
CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"

Array = NDArray[Any]
Spinning = Literal["never", "within_runs", "always"]


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """How every session of an executor computes. Defaults are for a daemon that sleeps between tokens."""

    threads: int
    providers: tuple[str, ...] = (CPU,)
    spinning: Spinning = "within_runs"
    """When threads spin for work. Within a run they are as quick as ever and then sleep at once; `always` lets the
    pools of all blocks spin against each other. docs/log.md, 2026-11-21, has the measurement."""
    spin_duration_us: int = 0
    """How long they spin before they sleep (ONNX Runtime 1.26 and later); 0 leaves its own limit."""

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise ValueError(f"threads is {self.threads}, must be at least 1")

    @property
    def provider(self) -> str:
        """The provider that is to compute; the others are what it may lean on."""
        return self.providers[0]

    @property
    def on_cpu(self) -> bool:
        return self.provider == CPU


def open_session(
    model: ModelProto,
    settings: SessionSettings,
    weights: Iterable[Mapping[str, Array]] = (),
    profile_prefix: str = "",
    files_dir: Path | None = None,
) -> ort.InferenceSession:
    """A session of `model` with its declared initializers attached.

    ONNX Runtime copies `weights`, packed for its kernels: they are freed when this returns. Initializers that name
    a file are packed from its pages below `files_dir`. With a `profile_prefix` it writes a profile
    until the session's `end_profiling`. Raises ProviderUnavailable when the wanted provider did not come up: ONNX
    Runtime itself would quietly take the CPU.
    """
    require_offered(settings)
    options = _options(settings)
    if profile_prefix:
        options.enable_profiling = True
        options.profile_file_prefix = profile_prefix
    if files_dir is not None:
        # The real path: links that lead out of this directory are refused.
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", os.path.realpath(files_dir)
        )
    values = {name: ort.OrtValue.ortvalue_from_numpy(array) for arrays in weights for name, array in arrays.items()}
    if values:
        options.add_external_initializers(list(values), list(values.values()))
    session = ort.InferenceSession(model.SerializeToString(), options, providers=list(settings.providers))
    if session.get_providers()[0] != settings.provider:
        raise ProviderUnavailable(f"{settings.provider} did not start; ONNX Runtime {RUNTIME_VERSION} took the CPU")
    return session


def require_offered(settings: SessionSettings) -> None:
    """Raises ProviderUnavailable when this build of ONNX Runtime lacks the provider altogether."""
    if settings.provider not in ort.get_available_providers():
        raise ProviderUnavailable(
            f"{settings.provider} is not in this build of ONNX Runtime {RUNTIME_VERSION}, which has {offered()}"
        )


def offered() -> str:
    """The providers this ONNX Runtime was built with, for texts only: whether one works shows by using it."""
    return ", ".join(ort.get_available_providers())


def shared_value(array: Array, device: str) -> ort.OrtValue:
    """A tensor that several sessions read: over the contiguous array's own memory on the host, else a copy."""
    return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), device, 0)


def device_value(shape: Sequence[int], dtype: type[np.generic], device: str) -> ort.OrtValue:
    """Uninitialised memory of `device`."""
    return ort.OrtValue.ortvalue_from_shape_and_type(list(shape), dtype, device, 0)


def release_freed_memory() -> None:
    """Give what was freed back to the system: glibc keeps up to half of a loaded model's size in its free lists."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _options(settings: SessionSettings) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = settings.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Run shapes change with every prompt: patterns of earlier shapes and arenas that never shrink would pile up.
    options.enable_mem_pattern = False
    options.enable_cpu_mem_arena = False
    entries = {
        "session.intra_op.allow_spinning": "0" if settings.spinning == "never" else "1",
        "session.inter_op.allow_spinning": "0",
        "session.prepack.enable_parallel": "1",
    }
    if settings.spinning == "within_runs":
        entries["session.force_spinning_stop"] = "1"
    if settings.spin_duration_us:
        entries["session.intra_op.spin_duration_us"] = str(settings.spin_duration_us)
    if not settings.on_cpu:
        # A device that says it computes on its GPU must not run half of a layer on its CPU without a word.
        entries["session.disable_cpu_ep_fallback"] = "1"
        entries["session.use_device_allocator_for_initializers"] = "1"
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    return options
