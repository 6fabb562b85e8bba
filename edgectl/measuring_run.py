"""What has a cluster's devices measure something, a pure core, joined to the control socket and the clock."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar, Union

from agent.errors import BadMessage, ConfigError
from agent.wire.control_plane import AsyncControlServer
from agent.wire.messages import FromAgent, FromSource, decode, encode
from agent.wire.security import AllowList, load_key_file
from edgectl.config import ClusterConfig
from edgectl.coordinator import ControlServer
from edgectl.effects import Send
from edgectl.tasks import until_one_ends

logger = logging.getLogger(__name__)

TICK_INTERVAL_S = 0.25

Inbound = Union[FromAgent, FromSource]
Effect = TypeVar("Effect")
Effect_co = TypeVar("Effect_co", covariant=True)


class MeasuringCore(Protocol[Effect_co]):
    """Messages and time go in, what is to be done comes out; `Profiling` and `QualitySpread` are such."""

    @property
    def is_finished(self) -> bool: ...
    def on_message(self, origin: bytes, device: str, message: Any, now: float) -> Sequence[Effect_co]: ...
    def on_bad_message(self, origin: bytes, device: str, problem: str, now: float) -> Sequence[Effect_co]: ...
    def on_tick(self, now: float) -> Sequence[Effect_co]: ...


def open_control(config: ClusterConfig) -> AsyncControlServer:
    """The control endpoint of cluster.toml. Raises ConfigError; where another process has it, with the way out."""
    keys = load_key_file(config.coordinator.key_file)
    allowed = AllowList({device.key: device.name for device in config.devices})
    try:
        return AsyncControlServer(keys, allowed, config.coordinator.bind)
    except ConfigError as problem:
        if "in use" in str(problem):
            raise ConfigError(
                f"{problem}: the devices speak to one coordinator at a time; stop `edgectl serve` first"
            ) from problem
        raise


async def drive(core: MeasuringCore[Effect], control: ControlServer, show: Callable[[Effect], None]) -> None:
    """Runs the core until it is finished: sends what it sends, in order, and shows every other effect."""

    async def carry_out(effects: Sequence[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                # Lost with its connection: a device that comes back says Hello, one that does not is given up.
                await control.send(effect.origin, encode(effect.message))
            else:
                show(effect)

    async def tick() -> None:
        while not core.is_finished:
            await carry_out(core.on_tick(time.monotonic()))
            await asyncio.sleep(TICK_INTERVAL_S)

    async def receive() -> None:
        while not core.is_finished:
            origin, device, data = await control.receive()
            now = time.monotonic()
            try:
                message: Inbound = decode(data, Inbound)
            except BadMessage as problem:
                logger.warning("bad_message", extra={"device": device, "detail": str(problem)})
                await carry_out(core.on_bad_message(origin, device, str(problem), now))
            else:
                await carry_out(core.on_message(origin, device, message, now))

    await until_one_ends(tick=tick(), receive=receive())
