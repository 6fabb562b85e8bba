"""The one place that imports ONNX Runtime: sessions, their options and weights, and its quantizers.

Telemetry is switched off before the import: the Linux wheels report home by default.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto
from onnxruntime.capi import onnxruntime_pybind11_state

quantize_4bits: Callable[..., None] = onnxruntime_pybind11_state.quantize_matmul_4bits
quantize_8bits: Callable[..., None] = onnxruntime_pybind11_state.quantize_matmul_8bits

RUNTIME_VERSION: str = ort.__version__

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """How every session of an executor computes. Defaults are for a daemon that sleeps between tokens."""

    threads: int
    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    spin: bool = False
    """Whether pool threads spin between two operators of a run. docs/log.md has the measurement."""
    spin_duration_us: int = 0
    """How long they spin; 0 leaves ONNX Runtime's own limit."""
    spin_stops: bool = True
    """Whether spinning ends with the run: otherwise every block's pool spins into the next block's run."""

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise ValueError(f"threads is {self.threads}, must be at least 1")


def open_session(
    model: ModelProto, settings: SessionSettings, weights: Iterable[dict[str, Array]] = ()
) -> ort.InferenceSession:
    """A session of `model` with its declared initializers attached.

    ONNX Runtime copies `weights`, packed for its kernels: they are freed when this returns.
    """
    options = _options(settings)
    values = {name: ort.OrtValue.ortvalue_from_numpy(array) for arrays in weights for name, array in arrays.items()}
    if values:
        options.add_external_initializers(list(values), list(values.values()))
    return ort.InferenceSession(model.SerializeToString(), options, providers=list(settings.providers))


def shared_value(array: Array, device: str) -> ort.OrtValue:
    """A tensor that several sessions read: over the contiguous array's own memory on the host, else a copy."""
    return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), device, 0)


def device_value(shape: Sequence[int], dtype: type[np.generic], device: str) -> ort.OrtValue:
    """Uninitialised memory of `device`."""
    return ort.OrtValue.ortvalue_from_shape_and_type(list(shape), dtype, device, 0)


def _options(settings: SessionSettings) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = settings.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Run shapes change with every prompt: patterns of earlier shapes and arenas that never shrink would pile up.
    options.enable_mem_pattern = False
    options.enable_cpu_mem_arena = False
    entries = {
        "session.intra_op.allow_spinning": "1" if settings.spin else "0",
        "session.inter_op.allow_spinning": "0",
        "session.prepack.enable_parallel": "1",
    }
    if settings.spin and settings.spin_stops:
        entries["session.force_spinning_stop"] = "1"
    if settings.spin and settings.spin_duration_us:
        entries["session.intra_op.spin_duration_us"] = str(settings.spin_duration_us)
    if settings.providers[0] != "CPUExecutionProvider":
        # A device that says it computes on its GPU must not run half of a layer on its CPU without a word.
        entries["session.disable_cpu_ep_fallback"] = "1"
        entries["session.use_device_allocator_for_initializers"] = "1"
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    return options
