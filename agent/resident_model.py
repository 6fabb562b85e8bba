"""The model a worker keeps loaded: loading, unloading and measuring, and what the coordinator is told of it.

Whatever goes wrong is told with a code and leaves nothing loaded; only the end of the supervisor ends these calls.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable

import msgspec

from agent.compute.executor import Executor
from agent.compute.receiver import Receiver
from agent.config import AgentConfig
from agent.errors import AgentError
from agent.loader import LoadedModel, load_model
from agent.measuring import measure_device
from agent.place import ModelShape
from agent.quality_measuring import measure_quality
from agent.wire import codec, messages
from agent.wire.measure_messages import (
    DeviceMeasured,
    MeasureDevice,
    MeasureProgress,
    MeasureQuality,
    QualityMeasured,
)
from agent.wire.messages import Failed, Load
from agent.worker_channel import ChannelClosed, Superseded, WorkerChannel
from planner.errors import PlannerError

logger = logging.getLogger(__name__)

MeasuringProgress = Callable[[str, int, int], None]
"""Called with what is measured next, parts done, and parts in all; raises Superseded."""


class ResidentModel:
    """At most one loaded model, in one process."""

    def __init__(self, config: AgentConfig, channel: WorkerChannel, report: Callable[[str], None]) -> None:
        """`report` tells the supervisor that the loop turns although it is busy, and with what."""
        self.provider = "cpu"
        self._config = config
        self._channel = channel
        self._report = report
        self._loaded: LoadedModel | None = None

    @property
    def executor(self) -> Executor | None:
        """What runs the layers, None while nothing is loaded."""
        return None if self._loaded is None else self._loaded.executor

    @property
    def receiver(self) -> Receiver | None:
        """What mends damage, None while nothing is loaded."""
        return None if self._loaded is None else self._loaded.receiver

    @property
    def memory_bytes(self) -> int:
        return self._loaded.memory_bytes if self._loaded else 0

    @property
    def shape(self) -> ModelShape:
        """What a stage has to know. Only while something is loaded."""
        assert self._loaded is not None
        executor, request = self._loaded.executor, self._loaded.request
        return ModelShape(
            executor.spec.num_layers,
            executor.spec.hidden_size,
            request.slots,
            request.context,
            executor.resident,
            executor.spec.vocab_size,
            2 * executor.spec.num_kv_heads * executor.spec.head_dim,
            codec.CODEC_IDS[executor.kv_type],
        )

    def has(self, request: Load) -> bool:
        """Exactly this is loaded, wherever it came from."""
        return self._loaded is not None and _apart_from_sources(self._loaded.request) == _apart_from_sources(request)

    def load(self, request: Load) -> bool:
        """Load what the coordinator asks for, and tell it; False when that failed. Unload what was there before."""
        assert self._loaded is None, "unload first"
        started_s = time.monotonic()

        def progress(done: int, total: int, bytes_done: int = 0, bytes_total: int = 0) -> None:
            self._report(f"loading layers {done} of {total}")
            self._channel.send(messages.LoadProgress(request.model, done, total, bytes_done, bytes_total))
            if bytes_total:  # What is fetched from elsewhere may take for ever.
                self._channel.check_superseded()

        try:
            self._loaded = load_model(request, self._config, self.provider, progress)
        except Superseded:
            logger.warning("load_superseded", extra={"model": request.model})
            return False
        except ChannelClosed:
            raise
        except (AgentError, PlannerError) as problem:
            self.tell_failed("load", problem.code, str(problem))
            return False
        except Exception as problem:  # a runtime that cannot load a graph must not take the device with it
            logger.exception("load_failed", extra={"model": request.model})
            self.tell_failed("load", "load_failed", f"{type(problem).__name__}: {problem}")
            return False
        # What a loaded model consists of lives until it is unloaded: the collector need not look at it every time.
        gc.collect()
        gc.freeze()
        self.tell_loaded(time.monotonic() - started_s)
        return True

    def unload(self) -> None:
        """Give its memory back, if anything is loaded."""
        if self._loaded is not None:
            self._loaded.executor.close()
            self._loaded = None
            gc.unfreeze()
            gc.collect()

    def measure(self, request: MeasureDevice) -> None:
        """Nothing else is served meanwhile: it would spoil the numbers. Unload what was there before."""

        def measured(progress: MeasuringProgress) -> None:
            profile = measure_device(request, self._config, self.provider, progress)
            self._channel.send(DeviceMeasured(request.request, profile))

        self._measure("measure-device", request.model, measured)

    def measure_quality(self, request: MeasureQuality) -> None:
        """Perplexities, each told as soon as it is there. Unload what was there before."""

        def measured(progress: MeasuringProgress) -> None:
            for index, perplexity in enumerate(measure_quality(request, self._config, self.provider, progress)):
                self._channel.send(QualityMeasured(request.request, index, perplexity))

        self._measure("measure-quality", request.model, measured)

    def _measure(self, request: str, model: str, measured: Callable[[MeasuringProgress], None]) -> None:
        """Carry a measurement out, which tells its results itself; whatever ends it before is told here."""

        def progress(what: str, done: int, total: int) -> None:
            self._report("measuring")
            self._channel.send(MeasureProgress(what, done, total))
            self._channel.check_superseded()

        try:
            measured(progress)
        except Superseded:
            logger.warning("measurement_superseded", extra={"model": model})
        except ChannelClosed:
            raise
        except (AgentError, PlannerError) as problem:
            self.tell_failed(request, problem.code, str(problem))
        except Exception as problem:  # as for a load
            logger.exception("measuring_failed", extra={"model": model})
            self.tell_failed(request, "measuring_failed", f"{type(problem).__name__}: {problem}")

    def tell_loaded(self, seconds: float) -> None:
        """What is loaded, and how long that took."""
        assert self._loaded is not None
        request, loaded = self._loaded.request, self._loaded
        self._channel.send(
            messages.Loaded(request.model, request.digest, loaded.memory_bytes, seconds, loaded.batch_invariant)
        )

    def tell_failed(self, request: str, code: str, problem: str) -> None:
        logger.error("request_failed", extra={"request": request, "code": code, "problem": problem})
        self._channel.send(Failed(request, code, f"{self._config.name}: {problem[: codec.MAX_DETAIL]}"))


def _apart_from_sources(request: Load) -> Load:
    return msgspec.structs.replace(request, sources=())
