"""From a Load request to an executor: find the model, check digest and memory, load the layers.

ONNX Runtime and onnx are imported here, on the first load: an agent without a model stays small.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

from agent.compute.checkpoint import Checkpoint, find_model
from agent.compute.executor import Executor
from agent.compute.model_digest import model_digest
from agent.config import AgentConfig
from agent.device.sensors.host import model_memory_bytes, physical_cores
from agent.errors import ConfigError, ModelMismatch, OutOfMemory
from agent.wire.messages import Load
from planner.memory import memory_breakdown
from planner.model_spec import ModelSpec
from planner.types import LayerRange

Progress = Callable[[int, int], None]
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to run here."""

    request: Load
    executor: Executor
    memory_bytes: int
    batch_invariant: bool


def load_model(request: Load, config: AgentConfig, provider: str, progress: Progress) -> LoadedModel:
    """Load what the coordinator asks for.

    Raises ModelNotFound, BadCheckpoint, ModelMismatch, OutOfMemory, ConfigError, and planner's errors for a config.json
    we cannot run; every text names this device or the file. An emulated device needs neither model nor memory.
    """
    if config.emulate:
        return _load_emulated(request, config, progress)
    path = find_model(config.models_dir, request.model)
    checkpoint = Checkpoint.open(path)
    digest = model_digest(path, config.cache_dir)
    if digest != request.digest:
        raise ModelMismatch(
            f"{request.model} in {config.models_dir} has digest {digest[:12]}, "
            f"the coordinator's copy {request.digest[:12]}; "
            "copy the coordinator's directory to this device"
        )
    resident = _resident(request, checkpoint.spec)
    memory = check_memory(request, checkpoint.spec, resident, model_memory_bytes(config.memory_limit_bytes))

    from agent.compute.onnx_executor import ExecutorSettings, OnnxExecutor
    from agent.compute.provider_probe import session_settings
    from agent.compute.self_check import is_batch_invariant

    settings = ExecutorSettings(
        resident=resident,
        slots=request.slots,
        context=request.context,
        quantization=request.quantization,
        block_size=request.block_size,
        boundary=request.boundary,
        session=session_settings(
            provider,
            threads=config.threads or physical_cores(),
            spin=config.spinning,
            spin_duration_us=config.spin_duration_us,
        ),
    )
    executor = OnnxExecutor.load(checkpoint, settings, progress)
    return LoadedModel(request, executor, memory, is_batch_invariant(executor))


def _load_emulated(request: Load, config: AgentConfig, progress: Progress) -> LoadedModel:
    from agent.emulation import emulated_device

    device = emulated_device(config, request)
    resident = _resident(request, device.spec)
    memory = check_memory(request, device.spec, resident, sys.maxsize)
    progress(sum(map(len, resident)), sum(map(len, resident)))
    executor = device.executor(resident, slots=request.slots, context=request.context)
    return LoadedModel(request, executor, memory, batch_invariant=True)


def check_memory(request: Load, spec: ModelSpec, resident: tuple[LayerRange, ...], available_bytes: int) -> int:
    """Bytes the load takes by the planner's formula. Raises OutOfMemory naming what is missing."""
    needed = 0
    parts = []
    for layers in resident:
        breakdown = memory_breakdown(
            spec,
            layers,
            quantization=request.quantization,
            block_size=request.block_size,
            slots=request.slots,
            context=request.context,
        )
        needed += breakdown.total
        parts.append(f"layers {layers} need {breakdown}")
    if needed > available_bytes:
        short = -(-(needed - available_bytes) // MIB)
        raise OutOfMemory(f"{short} MiB short: {'; '.join(parts)}; {available_bytes // MIB} MiB available")
    return needed


def _resident(request: Load, spec: ModelSpec) -> tuple[LayerRange, ...]:
    try:
        resident = tuple(LayerRange(start, stop) for start, stop in request.resident)
    except ValueError as problem:
        raise ConfigError(f"load of {request.model}: {problem}") from problem
    if not resident or any(layers.stop > spec.num_layers for layers in resident):
        raise ConfigError(f"load of {request.model}: {request.resident} of a model with {spec.num_layers} layers")
    if not 1 <= request.context <= spec.max_positions:
        raise ConfigError(f"load of {request.model}: context {request.context}, the model goes to {spec.max_positions}")
    return resident
