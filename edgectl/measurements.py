"""The measurements a profile consists of: which there are, what each asks for, and which may run together. Pure."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations

from agent.wire.measure_messages import MAX_MEASURED_POINTS, MeasureDevice, MeasureLink
from edgectl.devices import DeviceRecord
from edgectl.instructions import PREFILL_CHUNK_TOKENS
from planner.errors import BadProfile
from planner.model_spec import ModelSpec, parse_config
from planner.profile import ClusterProfile, DeviceProfile, LinkProfile
from planner.profile_json import dump_profile, parse_profile
from planner.types import BoundaryType, Codec, Quantization

CONTEXTS = (32, 512, 2048)
QUICK_CONTEXTS = (32, 512)
"""Tokens a row holds. Time grows linearly with them, so that two say as much as many; the third is a check."""
ROWS = (1, 2, 4, 8, 16)
QUICK_ROWS = (1, 2, 4)
PROMPTS = (4, 16, 32, 64, PREFILL_CHUNK_TOKENS)
QUICK_PROMPTS = (8, 32, PREFILL_CHUNK_TOKENS)
LINK_TOKENS = (1, 8, 32, PREFILL_CHUNK_TOKENS)
"""Tokens whose hidden states a frame carries: one decoded row up to one prefill chunk, which the wire code allows."""
DEVICE_S, QUICK_DEVICE_S = 45.0, 12.0
LINK_S, QUICK_LINK_S = 6.0, 2.0
"""Three devices of one machine have six links: 3 * 12 + 6 * 2 seconds are what `--quick` promises."""


@dataclass(frozen=True, slots=True)
class Task:
    """One measurement: of a device, or of the link from it to `peer`."""

    device: str
    peer: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """The devices it keeps busy."""
        return (self.device, self.peer) if self.peer else (self.device,)

    def __str__(self) -> str:
        return " → ".join(self.names)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is measured; see MeasureDevice and MeasureLink."""

    model: str
    config: str
    """The model's config.json."""
    quantization: Quantization
    block_size: int
    boundary: BoundaryType
    codec: Codec
    rows: tuple[int, ...]
    contexts: tuple[int, ...]
    prompts: tuple[int, ...]
    device_s: float
    sizes: tuple[tuple[int, int], ...]
    link_s: float

    def seconds(self, task: Task) -> float:
        """About how long a measurement may take."""
        return self.link_s if task.peer else self.device_s

    def request(self, number: int, task: Task, peer: DeviceRecord | None) -> MeasureDevice | MeasureLink:
        """The message that asks for it; `peer` is where a link leads to."""
        if peer is not None:
            return MeasureLink(
                request=number,
                peer=peer.name,
                endpoint=peer.data_endpoint,
                key=peer.key,
                sizes=self.sizes,
                codec=self.codec,
                seconds=self.link_s,
            )
        return MeasureDevice(
            request=number,
            model=self.model,
            config=self.config,
            quantization=self.quantization,
            block_size=self.block_size,
            boundary=self.boundary,
            rows=self.rows,
            contexts=self.contexts,
            prompts=self.prompts,
            seconds=self.device_s,
        )


def settings_for(
    model: str,
    config: str,
    spec: ModelSpec,
    *,
    quantization: Quantization,
    block_size: int,
    boundary: BoundaryType = "fp16",
    codec: Codec | None = None,
    quick: bool = False,
    seconds: float | None = None,
) -> Settings:
    """The points that are measured for a model; `seconds` replaces the time that a device is given."""
    longest = spec.max_positions - 1
    contexts = QUICK_CONTEXTS if quick else CONTEXTS
    device_s = seconds if seconds is not None else QUICK_DEVICE_S if quick else DEVICE_S
    link_s = QUICK_LINK_S if quick else LINK_S
    return Settings(
        model=model,
        config=config,
        quantization=quantization,
        block_size=block_size,
        boundary=boundary,
        codec=codec or boundary,
        rows=QUICK_ROWS if quick else ROWS,
        contexts=_at_most(longest, contexts),
        prompts=_at_most(longest, QUICK_PROMPTS if quick else PROMPTS),
        device_s=device_s,
        sizes=tuple((tokens, spec.hidden_size) for tokens in LINK_TOKENS),
        link_s=min(link_s, device_s),
    )


def objection(settings: Settings, device: DeviceProfile, link: LinkProfile | None = None) -> str:
    """Why no profile can hold what a device answered, empty when one can; `device` is an end of the link.

    One device's answer that a file refuses would cost the measurements of all.
    """
    most = {"decode": MAX_MEASURED_POINTS**2, "prefill": MAX_MEASURED_POINTS, "head": MAX_MEASURED_POINTS}
    for name, limit in most.items():
        count = len(getattr(device, name))
        if count > limit:
            return f"{name}: {count} points, at most {limit}"
    ends = (link.source, link.destination) if link is not None else (device.name,)
    try:
        profile = ClusterProfile(
            model=settings.model,
            spec=parse_config(json.loads(settings.config)),
            quantization=settings.quantization,
            block_size=settings.block_size,
            boundary=settings.boundary,
            devices=tuple(replace(device, name=name) for name in ends),
            links=(link,) if link is not None else (),
        )
        parse_profile(dump_profile(profile))
    except (ValueError, BadProfile) as problem:
        return str(problem)
    return ""


def tasks_for(wanted: Collection[str], known: Collection[str], order: Sequence[str]) -> list[Task]:
    """Every wanted device, then every ordered pair of which one end is wanted and the other wanted or known already."""
    ends = [name for name in order if name in wanted or name in known]
    links = [Task(a, b) for a, b in permutations(ends, 2) if a in wanted or b in wanted]
    return [*(Task(name) for name in order if name in wanted), *links]


def may_begin(task: Task, queued: Iterable[Task], running: Iterable[Task], hosts: Mapping[str, str]) -> bool:
    """Whether a measurement would disturb none that runs: two never share a host, and links come after all devices."""
    running = list(running)
    if task.peer and any(not other.peer for other in (*queued, *running)):
        return False
    busy = {hosts[name] for other in running for name in other.names}
    return not busy & {hosts[name] for name in task.names}


def _at_most(longest: int, wanted: tuple[int, ...]) -> tuple[int, ...]:
    """Those that a model has room for, its longest in place of the first that it has not."""
    fitting = tuple(size for size in wanted if size <= longest)
    return fitting if len(fitting) == len(wanted) or longest in fitting else (*fitting, longest)
