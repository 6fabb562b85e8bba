"""The composition root of `edgectl serve`: model, keys, sockets, coordinator and HTTP server on one loop, signals."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.errors import ConfigError
from agent.wire.control_plane import AsyncControlServer
from agent.wire.security import AllowList, load_key_file
from edgectl.adaptive.decision import AdaptiveSettings
from edgectl.bulk_server import BulkServer
from edgectl.cluster import Cluster
from edgectl.config import ClusterConfig, load_api_keys, parse_http, state_directory
from edgectl.coordinator import Coordinator, Reporter
from edgectl.deploy import Order
from edgectl.devices import DeviceTable
from edgectl.effects import Loading, NoPlan, Notice, Ready
from edgectl.epochs import Epochs, count_start
from edgectl.failures import ExitCode
from edgectl.http_guard import check_bind
from edgectl.model_source import describe_model, locate_model
from edgectl.output import CommandFailure, emit_json, mib, printable, progress_bar, say, table
from edgectl.planning import ServedModel, ServingOptions, context_of, order_for, order_of_plan
from edgectl.server import create_app, serve_http
from edgectl.tokenizer import Tokenizer, load_tokenizer
from planner.types import Allotment, Pipeline, Plan, Quantization

if TYPE_CHECKING:
    from edgectl.adaptive.choice import AdaptiveChoice


@dataclass(frozen=True, slots=True)
class Serving:
    """Everything that is known before the first device says Hello."""

    config: ClusterConfig
    model: ServedModel
    directory: Path
    """Where the model is here."""
    tokenizer: Tokenizer
    context: int
    order: Order
    api_keys: frozenset[str] | None
    adaptive: AdaptiveSettings | None = None
    """Who moves split points; None: nobody."""

    def adapted(self, choice: AdaptiveChoice, quantization: Quantization) -> Serving:
        """The same with splits that move. Raises CommandFailure, ConfigError."""
        # Here: who serves without a policy waits for nothing that reads one.
        from edgectl.adaptive.serving import adapt_order

        channels = self.config.settings().channels
        order, adaptive = adapt_order(
            self.order, self.model, quantization, choice, stopwatch=time.perf_counter, channels=channels
        )
        return replace(self, order=order, adaptive=adaptive)

    @classmethod
    def prepare(
        cls,
        config: ClusterConfig,
        model: str,
        options: ServingOptions,
        devices: Sequence[str],
        min_devices: int | None,
    ) -> Serving:
        """Checks configuration and model. Raises ConfigError, ModelError, PlannerError; ValueError for options."""
        unknown = [name for name in devices if name not in config.device_names()]
        if config.devices and unknown:
            raise ValueError(f"--devices {','.join(unknown)}: cluster.toml has {', '.join(config.device_names())}")
        in_order = [name for name in config.device_names() if name in devices]

        def order_of(served: ServedModel) -> tuple[Order, int]:
            return order_for(served, options, in_order, min_devices), context_of(served.spec, options)

        return cls._prepared(config, model, order_of)

    @classmethod
    def prepare_plan(cls, config: ClusterConfig, model: str, plan: Plan, pipeline: Pipeline = "no-bubbles") -> Serving:
        """The same for a plan that is executed as it is. Raises ConfigError, ModelError, BadPlan."""
        return cls._prepared(
            config, model, lambda served: (order_of_plan(served, plan, config.device_names(), pipeline), plan.context)
        )

    @classmethod
    def _prepared(
        cls, config: ClusterConfig, model: str, order_of: Callable[[ServedModel], tuple[Order, int]]
    ) -> Serving:
        if not config.devices:
            raise ConfigError("cluster.toml lists no device; `edge-agent init` on a device prints its block")
        keys_file = config.coordinator.api_keys_file
        api_keys = load_api_keys(keys_file) if keys_file is not None else None
        check_bind(parse_http(config.coordinator.http).host, api_keys)
        located = locate_model(model)
        with progress_bar("reading the model") as progress:
            served = describe_model(located, progress)
        order, context = order_of(served)
        tokenizer = load_tokenizer(located.directory, served.spec.vocab_size)
        return cls(config, served, located.directory, tokenizer, context, order, api_keys)


class Terminal(Reporter):
    """Tells the person at the terminal, and with `--json` a program, how the deployment goes."""

    def __init__(self, devices: DeviceTable, *, as_json: bool) -> None:
        self.url = ""
        """Where the API answers, once it does."""
        self.no_plan_found: asyncio.Future[NoPlan] = asyncio.get_running_loop().create_future()
        self._devices = devices
        self._as_json = as_json
        self._was_ready = False
        self._bars = _Bars()

    def notice(self, notice: Notice) -> None:
        prefix = "" if notice.severity == "info" else f"{notice.severity}: "
        self._bars.say(f"{prefix}{notice.detail}")

    def loading(self, progress: Loading) -> None:
        self._bars.update(progress)

    def ready(self, ready: Ready) -> None:
        self._bars.close()
        self._was_ready = True
        say(describe_plan(ready.plan, self._devices))
        say(f"serving {ready.plan.model} at {self.url}/v1")
        if self._as_json:
            emit_json({"event": "ready", "url": self.url, **plan_as_json(ready.plan)})

    def no_plan(self, problem: NoPlan) -> None:
        self._bars.close()
        if not self._was_ready and not self.no_plan_found.done():
            self.no_plan_found.set_result(problem)


class _Bars:
    """One bar per loading device on a terminal; a line per device elsewhere."""

    def __init__(self) -> None:
        self._progress: Any = None
        self._tasks: dict[str, Any] = {}

    def update(self, progress: Loading) -> None:
        if not sys.stderr.isatty():
            return
        if self._progress is None:
            from rich.console import Console
            from rich.progress import Progress

            self._progress = Progress(console=Console(stderr=True), transient=True)
            self._progress.start()
        if progress.device not in self._tasks:
            self._tasks[progress.device] = self._progress.add_task(progress.device)
        done, total, what = progress.layers_done, progress.layers_total, progress.device
        if progress.bytes_done < progress.bytes_total:
            # Its layers load as they arrive: what is on its way says how long it takes.
            done, total = progress.bytes_done, progress.bytes_total
            what = f"{progress.device}, {mib(done)} of {mib(total)}"
        self._progress.update(self._tasks[progress.device], completed=done, total=total, description=what)

    def say(self, text: str) -> None:
        if self._progress is None:
            say(text)
        else:
            self._progress.console.print(printable(text), markup=False, highlight=False)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
            self._tasks.clear()


def describe_plan(plan: Plan, devices: DeviceTable) -> str:
    """Which layers each device holds, and what this takes of its memory."""
    rows = []
    for allotment in _allotted(plan):
        hello = devices[allotment.device].hello
        memory = f"{mib(allotment.memory_bytes)} of {mib(allotment.memory_available_bytes)}"
        layers = " ".join(str(layers) for layers in allotment.resident)
        rows.append((allotment.device, layers, memory, hello.provider if hello is not None else "-"))
    shown = table(("device", "layers", "memory", "provider"), rows)
    for route in plan.routes:
        path = "" if len(plan.routes) == 1 else " by " + ", ".join(stage.device for stage in route.stages)
        shown += (
            f"\n{route.micro_batches * route.rows} sessions at a time{path}: {route.micro_batches} micro-batches of "
            f"{route.rows} rows"
        )
    ms_per_token = plan.predicted.get("ms_per_token")
    return shown if ms_per_token is None else f"{shown}\npredicted: {ms_per_token:.2f} ms per token"


def plan_as_json(plan: Plan) -> dict[str, object]:
    """The part of the `ready` event that says what runs where."""
    devices = [
        {
            "name": allotment.device,
            "layers": [allotment.resident[0].start, allotment.resident[-1].stop],
            "memory_bytes": allotment.memory_bytes,
            "memory_available_bytes": allotment.memory_available_bytes,
        }
        for allotment in _allotted(plan)
    ]
    return {
        "model": plan.model,
        "quantization": plan.quantization,
        "context": plan.context,
        "devices": devices,
        "predicted": plan.predicted or None,
    }


def _allotted(plan: Plan) -> list[Allotment]:
    """Of each device once, in the order of stages."""
    names = {stage.device: None for route in plan.routes for stage in route.stages}
    return [plan.allotment(name) for name in names]


async def serve_cluster(serving: Serving, *, as_json: bool) -> None:
    """Serves until SIGINT or SIGTERM. Raises CommandFailure when the model does not fit, ConfigError for an address."""
    config = serving.config.coordinator
    keys = load_key_file(config.key_file)
    start = count_start(state_directory(config, os.environ))
    devices = [(device.name, device.key) for device in serving.config.devices]
    bulk = BulkServer.open(serving.config, keys, serving.directory, serving.model.digest)
    try:
        settings = replace(serving.config.settings(bulk.source), adaptive=serving.adaptive)
        cluster = Cluster(devices, serving.order, Epochs(start), version("edgectl"), settings)
        terminal = Terminal(cluster.devices, as_json=as_json)
        coordinator = Coordinator(
            cluster, serving.model.spec, serving.context, start=start, clock=time.monotonic, reporter=terminal
        )
        control = AsyncControlServer(keys, AllowList({key: name for name, key in devices}), config.bind)
        try:
            if serving.adaptive is not None:
                say(serving.adaptive.described())
            say(f"waiting for {', '.join(serving.order.devices)} at {control.endpoint}")
            await _run(serving, coordinator, control, terminal)
        finally:
            control.close()
    finally:
        bulk.close()


async def _run(serving: Serving, coordinator: Coordinator, control: AsyncControlServer, terminal: Terminal) -> None:
    stop = _stop_signal()
    address = parse_http(serving.config.coordinator.http)
    terminal.url = address.url
    app = create_app(
        coordinator,
        serving.tokenizer,
        api_keys=serving.api_keys,
        sessions_per_key=serving.config.coordinator.max_sessions_per_key,
    )

    def listening(host: str, port: int) -> None:
        terminal.url = address._replace(host=host, port=port).url

    http = asyncio.create_task(serve_http(app, address.host, address.port, listening), name="http")
    running = asyncio.create_task(coordinator.run(control), name="control")
    try:
        awaited: list[asyncio.Future[Any]] = [http, running, stop, terminal.no_plan_found]
        await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
        if terminal.no_plan_found.done():
            problem = terminal.no_plan_found.result()
            raise CommandFailure.of(problem.code, problem.detail)
        for task in (http, running):
            if task.done():
                task.result()
                raise CommandFailure(ExitCode.FAILURE, f"the {task.get_name()} server stopped by itself")
        say("stopping")
        await coordinator.shut_down()
    finally:
        for task in (http, running):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


def _stop_signal() -> asyncio.Future[int]:
    """Done when the process is asked to stop; a second signal ends it the hard way."""
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[int] = loop.create_future()

    def on_signal(number: int) -> None:
        stop.set_result(number)
        for each in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(each)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal, number)
    return stop
