"""From a MeasureDevice request to a DeviceProfile: weights, runtime, sensors. Used by the worker, and by a command
that measures the machine it runs on without an agent.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from agent.compute.checkpoint import Checkpoint, find_model
from agent.config import AgentConfig
from agent.device.fingerprint import fingerprint
from agent.device.measured_power import PowerWindows, knows_power
from agent.device.power import PowerRecorder
from agent.device.profiler import OpenExecutor, ProfileTask, Progress, profile_device
from agent.device.sensors.discovery import find_sensor
from agent.device.sensors.host import boot_id, model_memory_bytes, physical_cores
from agent.device.sensors.sample import POWER
from agent.errors import ConfigError, ModelNotFound
from agent.wire.codec import MAX_ROWS, MAX_TOKENS_PER_ROW
from agent.wire.measure_messages import MAX_MEASURE_S, MAX_MEASURED_POINTS, MeasureDevice
from planner.model_spec import ModelSpec, parse_config
from planner.profile import DeviceProfile

if TYPE_CHECKING:
    from agent.compute.onnx_executor import OnnxExecutor
    from agent.compute.weights import Weights
    from agent.device.sample_layers import Resident

OWN_WEIGHTS, RANDOM_WEIGHTS = "the model's own", "random"


def measure_device(
    request: MeasureDevice,
    config: AgentConfig,
    provider: str,
    progress: Progress,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> DeviceProfile:
    """Measure this device as the request says. Unload what is loaded before. One that is played says what it plays.

    Raises ConfigError for a request that makes no sense, OutOfMemory, BadCheckpoint, ProviderUnavailable, and planner's
    errors for a config.json we cannot run.
    """
    _check(request)
    if config.emulate:
        from agent.emulation import emulated_device

        return replace(emulated_device(config, request).profile, name=config.name)
    spec = parse_config(_config(request.config))
    weights, kind = _weights(request.model, spec, config)
    threads = config.threads or physical_cores()

    from agent.compute.onnx_session import RUNTIME_VERSION

    root = Path("/")
    sensor = find_sensor(root, board=config.board, jtop=config.jtop, clock=clock)
    try:
        before = sensor.sample(clock())
        # A sensor is read twenty times a second: not for nothing.
        with PowerRecorder(sensor, clock) if knows_power(before) else nullcontext() as recorder:
            power = None if recorder is None else PowerWindows(recorder, clock=clock, sleep=sleep)
            measured = profile_device(
                _task(request, config, provider, spec),
                _executors(request, config, provider, weights, threads),
                progress=progress,
                clock=clock,
                sleep=sleep,
                power=power,
            )
        after = sensor.sample(clock())
    finally:
        sensor.close()
    values, missing = fingerprint(root, board=config.board, sample=before)
    if power is None:
        missing["power"] = before.missing.get(POWER, f"{before.source} knows no power")
    values |= {
        "edgectl": version("edgectl"),
        "runtime": f"onnxruntime {RUNTIME_VERSION}",
        "provider": provider,
        "threads": threads,
        "weights": kind,
        "power_covers": before.covers or None,
        "temperature_before_c": before.hottest_c,
        "temperature_after_c": after.hottest_c,
    }
    return replace(measured, fingerprint=values, missing={**measured.missing, **missing})


def _executors(
    request: MeasureDevice, config: AgentConfig, provider: str, weights: Weights, threads: int
) -> OpenExecutor:
    """What opens layers of these weights as `loader` does for serving."""
    from agent.compute.onnx_executor import ExecutorSettings, OnnxExecutor
    from agent.compute.provider_probe import session_settings

    session = session_settings(
        provider, threads=threads, spin=config.spinning, spin_duration_us=config.spin_duration_us
    )

    def open_executor(resident: Resident, slots: int, context: int) -> OnnxExecutor:
        settings = ExecutorSettings(
            resident=resident,
            slots=slots,
            context=context,
            quantization=request.quantization,
            block_size=request.block_size,
            boundary=request.boundary,
            session=session,
        )
        return OnnxExecutor.load(weights, settings)

    return open_executor


def _task(request: MeasureDevice, config: AgentConfig, provider: str, spec: ModelSpec) -> ProfileTask:
    return ProfileTask(
        name=config.name,
        host=boot_id(),
        provider=provider,
        spec=spec,
        quantization=request.quantization,
        block_size=request.block_size,
        boundary=request.boundary,
        rows=request.rows,
        contexts=request.contexts,
        prompts=request.prompts,
        seconds=request.seconds,
        memory_bytes=model_memory_bytes(config.memory_limit_bytes),
    )


def _check(request: MeasureDevice) -> None:
    """Raises ConfigError naming the field."""
    for name, most in (("rows", MAX_ROWS), ("contexts", None), ("prompts", MAX_TOKENS_PER_ROW)):
        values = getattr(request, name)
        if len(values) > MAX_MEASURED_POINTS:
            raise ConfigError(f"measure-device: {name} has {len(values)} numbers, at most {MAX_MEASURED_POINTS}")
        least = 0 if name == "contexts" else 1
        if not values or min(values) < least or (most is not None and max(values) > most):
            upper = f" to {most}" if most else " up"
            raise ConfigError(f"measure-device: {name} is {list(values)}; at least one number from {least}{upper}")
    if not 0 < request.seconds <= MAX_MEASURE_S:
        raise ConfigError(f"measure-device: seconds is {request.seconds}, must be positive and at most {MAX_MEASURE_S}")
    if request.block_size < 1:
        raise ConfigError(f"measure-device: block_size is {request.block_size}, must be positive")


def _config(text: str) -> dict[str, object]:
    try:
        return msgspec.json.decode(text, type=dict[str, object])
    except (msgspec.DecodeError, RecursionError) as problem:
        raise ConfigError(f"measure-device: config is no JSON object: {problem}") from problem


def _weights(model: str, spec: ModelSpec, config: AgentConfig) -> tuple[Weights, str]:
    """The model's weights where this device has them, else random ones of its shape, and which they are."""
    from agent.compute.random_weights import RandomWeights

    try:
        checkpoint = Checkpoint.open(find_model(config.models_dir, model))
    except ModelNotFound:
        return RandomWeights(spec), RANDOM_WEIGHTS
    if checkpoint.spec != spec:
        return RandomWeights(spec), RANDOM_WEIGHTS
    return checkpoint, OWN_WEIGHTS
