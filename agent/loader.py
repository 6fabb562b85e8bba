"""From a Load request to an executor: find the model, check digest and memory, load the layers.

A device without the model, or with another one of that name, fetches its layers when the request says where from. ONNX
Runtime and onnx are imported here, on the first load: an agent without a model stays small.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import msgspec

from agent.compute.calibration import find_calibrations
from agent.compute.checkpoint import Checkpoint, find_model
from agent.compute.executor import Executor
from agent.compute.layer_store import LayerStore
from agent.compute.model_digest import model_digest
from agent.compute.part import PartKey, parts_of
from agent.compute.receiver import Receiver
from agent.compute.weights import StoredWeights, Weights
from agent.config import AgentConfig
from agent.device.sensors.host import model_memory_bytes, physical_cores
from agent.errors import BadCheckpoint, ConfigError, ModelMismatch, ModelNotFound, OutOfMemory
from agent.weight_fetch import COORDINATOR
from agent.weight_transfer import Transfer, source_endpoint
from agent.wire.addresses import BulkSource
from agent.wire.messages import Load
from agent.wire.security import load_key_file
from planner.memory import memory_breakdown
from planner.model_spec import ModelSpec
from planner.types import LayerRange

if TYPE_CHECKING:
    from agent.compute.onnx_executor import OnnxExecutor

logger = logging.getLogger(__name__)

LayerProgress = Callable[[int, int], None]

MIB = 1 << 20


class Progress(Protocol):
    """Called with every layer, and every half second while bytes are awaited; may raise to end the load."""

    def __call__(self, done: int, total: int, bytes_done: int = 0, bytes_total: int = 0) -> None:
        """Layers, and bytes of what is fetched: both 0 where nothing is."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to run here."""

    request: Load
    executor: Executor
    memory_bytes: int
    batch_invariant: bool
    receiver: Receiver = field(default_factory=Receiver)
    """What hidden states that arrive over an emulated channel are mended with."""


def load_model(request: Load, config: AgentConfig, provider: str, progress: Progress) -> LoadedModel:
    """Load what the coordinator asks for.

    Raises ModelNotFound, BadCheckpoint, ModelMismatch, OutOfMemory, ConfigError, and planner's errors for a config.json
    we cannot run; every text names this device or the file. An emulated device needs neither model nor memory.
    """
    if config.emulate:
        return _load_emulated(request, config, progress)
    try:
        checkpoint = _checkpoint(request, config)
    except (ModelNotFound, ModelMismatch) as problem:
        if not request.sources:
            raise
        logger.info("fetching_weights", extra={"model": request.model, "because": str(problem)})
        return _load_fetched(request, config, provider, progress)
    resident = _resident(request, checkpoint.spec)
    memory = check_memory(request, checkpoint.spec, resident, model_memory_bytes(config.memory_limit_bytes))
    executor = _executor(request, config, provider, _kept(request, config, provider, checkpoint, resident), progress)
    return _checked(request, config, executor, memory)


def _kept(
    request: Load, config: AgentConfig, provider: str, checkpoint: Checkpoint, resident: tuple[LayerRange, ...]
) -> Weights:
    """The checkpoint's weights, quantized ones from the cache. Float weights take no longer to read than to find."""
    key = _part_key(request, provider)
    if not key.is_quantized or not config.cache_limit_bytes:
        return checkpoint
    store = LayerStore(config.cache_dir / "layers", config.cache_limit_bytes)
    return StoredWeights(checkpoint, key, store, parts_of(resident, checkpoint.spec.num_layers))


def _checkpoint(request: Load, config: AgentConfig) -> Checkpoint:
    """This device's copy of the model. Raises ModelNotFound, BadCheckpoint, ModelMismatch."""
    path = find_model(config.models_dir, request.model)
    checkpoint = Checkpoint.open(path)
    digest = model_digest(path, config.cache_dir)
    if digest != request.digest:
        raise ModelMismatch(
            f"{request.model} in {config.models_dir} has digest {digest[:12]}, "
            f"the coordinator's copy {request.digest[:12]}; "
            "copy the coordinator's directory to this device"
        )
    return checkpoint


def _load_fetched(request: Load, config: AgentConfig, provider: str, progress: Progress) -> LoadedModel:
    """Load layers that others have, as they arrive."""
    layers = [0, 0]

    def waiting(bytes_done: int, bytes_total: int) -> None:
        # Never 0 in all: that would say that nothing is fetched.
        progress(layers[0], layers[1], bytes_done, max(1, bytes_total))

    key = _part_key(request, provider)
    store = LayerStore(config.cache_dir / "layers", config.cache_limit_bytes)
    with closing(Transfer(key, _sources(request, config), load_key_file(config.key_file), store, waiting)) as transfer:
        resident = _resident(request, transfer.spec)
        memory = check_memory(request, transfer.spec, resident, model_memory_bytes(config.memory_limit_bytes))
        transfer.want(parts_of(resident, transfer.spec.num_layers))

        def loading(done: int, total: int) -> None:
            layers[:] = done, total
            waiting(transfer.bytes_done, transfer.bytes_total)

        executor = _executor(request, config, provider, transfer, loading)
        transfer.finish()
    given = {source or "coordinator": size for source, size in transfer.bytes_from.items()}
    logger.info("weights_fetched", extra={"model": request.model, "bytes": given})
    return _checked(request, config, executor, memory)


def _sources(request: Load, config: AgentConfig) -> list[BulkSource]:
    """Where to fetch from. The coordinator is whoever has the key in this device's configuration."""
    return [
        msgspec.structs.replace(
            source, endpoint=source_endpoint(source, config.coordinator), key=config.coordinator_key
        )
        if source.device == COORDINATOR
        else source
        for source in request.sources
        if source.device != config.name
    ]


def _part_key(request: Load, provider: str) -> PartKey:
    try:
        compute = "fp32" if provider == "cpu" else "fp16"
        return PartKey(request.digest, request.quantization, request.block_size, compute)
    except ValueError as problem:
        raise ConfigError(f"load of {request.model}: {problem}") from problem


def _executor(
    request: Load, config: AgentConfig, provider: str, weights: Weights, progress: LayerProgress
) -> OnnxExecutor:
    from agent.compute.onnx_executor import ExecutorSettings, OnnxExecutor
    from agent.compute.provider_probe import session_settings

    settings = ExecutorSettings(
        resident=_resident(request, weights.spec),
        slots=request.slots,
        context=request.context,
        quantization=request.quantization,
        block_size=request.block_size,
        boundary=request.boundary,
        cuts=request.cuts,
        session=session_settings(
            provider,
            threads=config.threads or physical_cores(),
            spin=config.spinning,
            spin_duration_us=config.spin_duration_us,
        ),
    )
    return OnnxExecutor.load(weights, settings, progress)


def _checked(request: Load, config: AgentConfig, executor: OnnxExecutor, memory_bytes: int) -> LoadedModel:
    from agent.compute.self_check import is_batch_invariant

    receiver = _receiver(request, config, executor.spec.hidden_size)
    return LoadedModel(request, executor, memory_bytes, is_batch_invariant(executor), receiver)


def _receiver(request: Load, config: AgentConfig, hidden_size: int) -> Receiver:
    """What this device knows of the model. A file of another one, left beside a model that was replaced, is named in
    the log and not used: it matters over an emulated channel only."""
    try:
        found = find_calibrations(config.models_dir, request.model, config.cache_dir, request.digest, hidden_size)
    except (BadCheckpoint, ModelMismatch) as problem:
        logger.error("calibration_refused", extra={"model": request.model, "problem": str(problem)})
        found = None
    return Receiver(found)


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
