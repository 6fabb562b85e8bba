"""From a MeasureQuality request to perplexities: checks, the model, the text. Used by the worker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing

import numpy as np

from agent.compute.calibration import find_calibrations
from agent.compute.executor import Executor
from agent.compute.receiver import Receiver
from agent.config import AgentConfig
from agent.errors import ConfigError
from agent.loader import load_model
from agent.wire.measure_messages import MAX_QUALITY_CHANNELS, MAX_QUALITY_TOKENS, MeasureQuality
from agent.wire.messages import Load
from planner.channel import Channel

Progress = Callable[[str, int, int], None]
"""Called with what is done next, windows done, and windows in all; may raise to end the measurement."""


def measure_quality(request: MeasureQuality, config: AgentConfig, provider: str, progress: Progress) -> Iterator[float]:
    """The perplexity over each of the channels, one after the other. Unload what is loaded before.

    Raises ConfigError for a request that makes no sense, and what `load_model` raises.
    """
    _check(request, config)
    # Here, as in `loader`: an agent that was never asked to compute stays small.
    from agent.compute.perplexity import PerplexityMeter

    def loading(done: int, total: int, bytes_done: int = 0, bytes_total: int = 0) -> None:
        progress(f"loading {request.model}", done, total)

    loaded = load_model(_load(request), config, provider, loading)

    with closing(loaded.executor):
        vocabulary = loaded.executor.spec.vocab_size
        if loaded.executor.spec.num_layers != request.num_layers:
            raise ConfigError(f"measure-quality: {request.model} has {loaded.executor.spec.num_layers} layers")
        if not 0 <= min(request.tokens) <= max(request.tokens) < vocabulary:
            raise ConfigError(f"measure-quality: token ids outside 0 to {vocabulary - 1}")
        windows = np.array(request.tokens, np.int64).reshape(-1, request.window)
        meter = PerplexityMeter(loaded.executor, windows, request.codec, _receiver(request, config, loaded.executor))
        done, total = 0, len(windows) * (len(request.channels) + 1)

        def tick() -> None:
            nonlocal done
            done += 1
            progress(f"perplexity at split {request.split}", done, total)

        for channel in request.channels:
            yield meter.at(request.split, channel, tick)


def _check(request: MeasureQuality, config: AgentConfig) -> None:
    """Raises ConfigError naming the field."""
    if config.emulate:
        raise ConfigError("measure-quality: a device that is played has no weights")
    if not 1 <= request.split < request.num_layers:
        raise ConfigError(f"measure-quality: split {request.split} of {request.num_layers} layers")
    if not 1 <= len(request.channels) <= MAX_QUALITY_CHANNELS:
        raise ConfigError(
            f"measure-quality: {len(request.channels)} channels, 1 to {MAX_QUALITY_CHANNELS} are possible"
        )
    count = len(request.tokens)
    if request.window < 2 or not 1 <= count <= MAX_QUALITY_TOKENS or count % request.window:
        raise ConfigError(f"measure-quality: {count} tokens are no whole windows of {request.window}")


def _receiver(request: MeasureQuality, config: AgentConfig, executor: Executor) -> Receiver:
    """What this device knows of the model. Raises ConfigError where a channel asks for more."""
    size = executor.spec.hidden_size
    found = find_calibrations(config.models_dir, request.model, config.cache_dir, request.digest, size)
    if any(map(needs_calibration, request.channels)) and (found is None or request.split not in found.layers):
        raise ConfigError(
            f"measure-quality: {request.model} is not calibrated behind layer {request.split} on this device; "
            "`edgectl eval calibrate` makes the file, which lies beside the model's directory"
        )
    return Receiver(found)


def needs_calibration(channel: Channel) -> bool:
    """Whether without a calibration something else than what the channel says would be done."""
    return channel.concealment in ("mean", "lmmse") or channel.protection != "none"


def _load(request: MeasureQuality) -> Load:
    """All layers, with a resident range either side of the split: a block ends there."""
    return Load(
        model=request.model,
        digest=request.digest,
        resident=((0, request.split), (request.split, request.num_layers)),
        quantization=request.quantization,
        block_size=request.block_size,
        boundary=request.boundary,
        slots=1,
        context=request.window,
    )
