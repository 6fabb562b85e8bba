"""`QualitySpread` joined to the control socket and the clock: a quality grid measured by a cluster's agents."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version

from agent.wire.measure_messages import MAX_QUALITY_TOKENS, MeasureQuality
from edgectl.config import ClusterConfig
from edgectl.coordinator import ControlServer
from edgectl.effects import Notice
from edgectl.failures import ExitCode
from edgectl.measuring_run import drive, open_control
from edgectl.output import CommandFailure, say
from edgectl.quality.file import Measurement
from edgectl.quality.perplexity import Subject
from edgectl.quality.points import QualityPoint
from edgectl.quality.spread import Effect, Measured, QualitySpread, Run, Unit, units_of
from planner.channel import Channel

ChannelFor = Callable[[QualityPoint, int], Channel]
"""The channel of one run at a point."""

MESSAGE_STATES = 16_384
"""Channel states of one request: 100 bytes each, with a text that long, stay within a control message."""


def measure_on_cluster(
    config: ClusterConfig,
    subject: Subject,
    channel_for: ChannelFor,
    missing: Sequence[Run],
    add: Callable[[Measurement], None],
    *,
    wait_s: float,
) -> None:
    """Has the devices of cluster.toml measure what is missing and adds each result as it comes.

    Raises ConfigError where the control endpoint is taken, CommandFailure without devices and when something is left
    that none can do.
    """
    if not missing:
        return
    if not config.devices:
        raise CommandFailure(
            ExitCode.CONFIG, "cluster.toml lists no device", "`edge-agent init` prints a device's block"
        )

    async def measure() -> None:
        control = open_control(config)
        try:
            say(f"waiting for {', '.join(config.device_names())} at {control.endpoint}")
            await run_spread(spread_for(config, subject, channel_for, missing, wait_s), control, add)
        finally:
            control.close()

    asyncio.run(measure())


def spread_for(
    config: ClusterConfig, subject: Subject, channel_for: ChannelFor, missing: Sequence[Run], wait_s: float
) -> QualitySpread:
    """The units of what is missing and how they are asked for. Raises CommandFailure for a text too long for agents."""
    tokens = tuple(subject.text.windows.reshape(-1).tolist())
    if len(tokens) > MAX_QUALITY_TOKENS:
        raise CommandFailure(
            ExitCode.USAGE, f"{len(tokens)} tokens: agents take at most {MAX_QUALITY_TOKENS}", "lower --tokens"
        )
    states = len(channel_for(*missing[0]).states)

    def request_for(number: int, unit: Unit) -> MeasureQuality:
        return MeasureQuality(
            request=number,
            model=subject.model.name,
            digest=subject.model.digest,
            num_layers=subject.model.spec.num_layers,
            quantization=subject.kind.quantization,
            block_size=subject.kind.block_size,
            boundary=subject.kind.boundary,
            codec=subject.kind.wire,
            window=subject.window,
            tokens=tokens,
            split=unit.split,
            channels=tuple(channel_for(point, run) for point, run in unit.runs),
        )

    return QualitySpread(
        cluster=[(device.name, device.key) for device in config.devices],
        units=units_of(missing, max(1, min(64, MESSAGE_STATES // states))),
        request_for=request_for,
        version=version("edgectl"),
        wait_s=wait_s,
        began_s=time.monotonic(),
        first_request=secrets.randbelow(1 << 31),
    )


async def run_spread(spread: QualitySpread, control: ControlServer, add: Callable[[Measurement], None]) -> None:
    """Carries it out to its end. Raises CommandFailure when something is left that nobody could measure."""

    def show(effect: Effect) -> None:
        if isinstance(effect, Measured):
            add(effect.measurement)
        elif isinstance(effect, Notice):
            say(effect.detail if effect.severity == "info" else f"{effect.severity}: {effect.detail}")

    await drive(spread, control, show)
    if spread.left:
        reasons = "\n".join(f"  {name}: {problem}" for name, problem in spread.problems.items())
        raise CommandFailure(
            ExitCode.UNAVAILABLE,
            f"{spread.left} runs are left and no device can do them\n{reasons or '  none has connected'}",
            "what was measured is kept; run `edge-agent run` on each device, and this again",
        )
