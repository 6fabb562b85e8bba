"""`Profiling` joined to the control socket, the clock and the terminal; makes the ClusterProfile of what came out."""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from functools import partial
from importlib.metadata import version
from typing import Any

from typing_extensions import assert_never

from edgectl.config import ClusterConfig
from edgectl.coordinator import ControlServer
from edgectl.effects import Notice, Send
from edgectl.failures import ExitCode
from edgectl.measurements import Settings, Task
from edgectl.measuring_run import drive, open_control
from edgectl.output import CommandFailure, printable, say
from edgectl.profiling import Advanced, Began, Effect, Ended, Finished, Planned, Profiling
from planner.model_spec import ModelSpec
from planner.profile import ClusterProfile

LONGEST_PART = 60
"""Characters of what a device says it measures now: beside a bar there is no room for more."""


class Bars:
    """A bar for all measurements and one for each that runs on a terminal; a line per finished one elsewhere."""

    def __init__(self) -> None:
        self._progress: Any = None
        self._whole: Any = None
        self._bars: dict[Task, Any] = {}

    def planned(self, tasks: Sequence[Task]) -> None:
        if not tasks:
            return
        links = sum(bool(task.peer) for task in tasks)
        say(f"measuring {len(tasks) - links} devices and {links} links")
        if not sys.stderr.isatty():
            return
        from rich.console import Console
        from rich.progress import Progress

        self._progress = Progress(console=Console(stderr=True), transient=True)
        self._progress.start()
        self._whole = self._progress.add_task("all measurements", total=len(tasks))

    def began(self, task: Task) -> None:
        if self._progress is not None:
            self._bars[task] = self._progress.add_task(str(task), total=None)

    def advanced(self, advanced: Advanced) -> None:
        if self._progress is not None and advanced.task in self._bars:
            from rich.markup import escape

            self._progress.update(
                self._bars[advanced.task],
                description=escape(printable(f"{advanced.task}: {advanced.what[:LONGEST_PART]}")),
                completed=advanced.done,
                total=advanced.total,
            )

    def ended(self, ended: Ended) -> None:
        if self._progress is not None:
            self._progress.advance(self._whole)
            if ended.task in self._bars:
                self._progress.remove_task(self._bars.pop(ended.task))
        if ended.problem:
            self.say(f"warning: {ended.task}: {ended.problem}")
        elif self._progress is None:
            self.say(f"measured {ended.task}")

    def say(self, text: str) -> None:
        if self._progress is None:
            say(text)
        else:
            self._progress.console.print(printable(text), markup=False, highlight=False)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


async def measure_cluster(
    config: ClusterConfig, settings: Settings, wanted: Sequence[str], *, wait_s: float, known: Sequence[str] = ()
) -> Profiling:
    """Measures devices and links and returns what came out. Raises ConfigError, CommandFailure when nobody came.

    `known` are devices of an older profile whose links to the wanted ones are measured as well.
    """
    control = open_control(config)
    profiling = Profiling(
        cluster=[(device.name, device.key) for device in config.devices],
        wanted=tuple(wanted),
        settings=settings,
        version=version("edgectl"),
        wait_s=wait_s,
        known=tuple(known),
        began_s=time.monotonic(),
        first_request=secrets.randbelow(1 << 31),
    )
    bars = Bars()
    try:
        say(f"waiting for {', '.join(wanted)} at {control.endpoint}")
        await run_profiling(profiling, control, bars)
    finally:
        bars.close()
        control.close()
    return profiling


async def run_profiling(profiling: Profiling, control: ControlServer, bars: Bars) -> None:
    """Carries a profile in the making out to its end. Raises CommandFailure when no device could be measured."""
    await drive(profiling, control, partial(_show, bars))
    if not profiling.profiles:
        reasons = "\n".join(f"  {name}: {problem}" for name, problem in profiling.problems.items())
        raise CommandFailure(
            ExitCode.UNAVAILABLE,
            f"no device could be measured\n{reasons}",
            "run `edge-agent run` on each device; its journal says what it waits for",
        )


def _show(bars: Bars, effect: Effect) -> None:
    if isinstance(effect, Notice):
        bars.say(effect.detail if effect.severity == "info" else f"{effect.severity}: {effect.detail}")
    elif isinstance(effect, Planned):
        bars.planned(effect.tasks)
    elif isinstance(effect, Began):
        bars.began(effect.task)
    elif isinstance(effect, Advanced):
        bars.advanced(effect)
    elif isinstance(effect, Ended):
        bars.ended(effect)
    elif not isinstance(effect, (Finished, Send)):
        assert_never(effect)


def profile_of(
    profiling: Profiling, spec: ModelSpec, before: ClusterProfile | None = None, at: datetime | None = None
) -> ClusterProfile:
    """What was measured as a profile, over `before` where that has devices or links this run did not measure.

    Links that could not be measured are left out: the planner makes no neighbours of such a pair.
    """
    devices = {device.name: device for device in (before.devices if before is not None else ())} | profiling.profiles
    order = [name for name, _ in profiling.cluster if name in devices]
    # A link that failed today is not the one of yesterday.
    links = {
        (link.source, link.destination): link
        for link in (before.links if before is not None else ())
        if {link.source, link.destination} <= set(order)
        and str(Task(link.source, link.destination)) not in profiling.problems
    }
    links |= profiling.links
    settings = profiling.settings
    created = (at or datetime.now(timezone.utc)).strftime("%Y-%m-%dT%H:%M:%SZ")
    return ClusterProfile(
        model=settings.model,
        spec=spec,
        quantization=settings.quantization,
        block_size=settings.block_size,
        boundary=settings.boundary,
        devices=tuple(devices[name] for name in order),
        links=tuple(links[pair] for pair in sorted(links, key=lambda pair: tuple(map(order.index, pair)))),
        created=created,
        version=profiling.version,
    )
