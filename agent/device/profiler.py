"""Times one model's layers on this device: real blocks of the real architecture, in the order of serving.

Owns what is measured and within which time. Which layers are loaded is `sample_layers`' matter, the runs are `rounds`',
the arithmetic is `fit`'s. The executor comes from a function, so that this knows no runtime.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from agent.device import fit
from agent.device.measured_power import PowerWindows
from agent.device.process_memory import anonymous_bytes
from agent.device.rounds import Rounds, RoundTimes, TimedExecutor
from agent.device.sample_layers import Resident, SampleLayers, choose_layers
from agent.device.timing import Clock, Effort, scaled, timing
from planner.memory import head_bytes, layer_weight_bytes, memory_bytes
from planner.model_spec import ModelSpec
from planner.profile import DecodePoint, DeviceProfile, HeadPoint, MemoryCheck, PrefillPoint, Timing
from planner.types import BoundaryType, Quantization

Progress = Callable[[str, int, int], None]
"""What is next in a few words, parts done, parts in all."""

LOADED_SHARE = 0.3
"""Of the time allowed, what is measured for at least, however long loading took."""
OVERTIME_SHARE = 0.25
"""Beyond the time allowed by this much, points that are not the first of their kind are left out."""

PASSES = 4
"""Every point is timed in so many passes over all of them: what disturbs the device for a second is in a quarter of a
point's samples then, which leaves the median alone."""
FEWEST, MOST = 3, 400
"""Rounds of one point: at least in the first pass, and at most in all."""

PAUSE_SHARE = 2 / 3
PAUSE_HOPS_S = 0.001
LONGEST_PAUSE_S = 0.005
"""A stage rests while the others compute, and is slower after it: caches and sleeping threads (docs/log.md). Rounds
pause for as long as two of three equal stages and their hops take, but hardly anything is added after 5 ms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileTask:
    """What to measure."""

    name: str
    host: str
    provider: str
    spec: ModelSpec
    quantization: Quantization
    block_size: int
    boundary: BoundaryType
    rows: tuple[int, ...]
    contexts: tuple[int, ...]
    prompts: tuple[int, ...]
    seconds: float
    memory_bytes: int
    """What a model may take on this device."""


OpenExecutor = Callable[[Resident, int, int], TimedExecutor]
"""(resident layer ranges, slots, context) to an executor that holds them."""


def profile_device(
    task: ProfileTask,
    open_executor: OpenExecutor,
    *,
    progress: Progress,
    clock: Clock,
    sleep: Callable[[float], None],
    power: PowerWindows | None = None,
) -> DeviceProfile:
    """Load, time and unload. Raises OutOfMemory when not one layer fits, and whatever loading raises.

    The fingerprint is left empty: it belongs to the process, not to the model.
    """
    chosen = choose_layers(
        task.spec,
        quantization=task.quantization,
        block_size=task.block_size,
        rows=task.rows,
        contexts=task.contexts,
        prompts=task.prompts,
        available_bytes=task.memory_bytes,
    )
    measuring = _Measuring(task, chosen, progress, clock=clock, sleep=sleep, power=power)
    if power is not None:
        measuring.say("power at rest")
        power.rest()
    for number, resident in enumerate(chosen.loads):
        measuring.say(f"loading {_listed(resident)}")
        before_bytes = anonymous_bytes()
        executor = open_executor(resident, chosen.slots, chosen.context)
        try:
            measuring.time_layers(executor, loads_left=len(chosen.loads) - number)
            measuring.check_memory(resident, before_bytes)
        finally:
            executor.close()
    return measuring.profile()


class _Point(NamedTuple):
    """One curve's point that is timed."""

    kind: Literal["busy", "decode", "prefill"]
    size: int
    """Rows, for prefill tokens."""
    context: int = 0
    is_alone: bool = False
    """Of the fewest rows."""

    @property
    def weight(self) -> float:
        """Its share of the time; curves of few rows are what every plan is made from."""
        return 3.0 if self.kind == "decode" and self.is_alone else 1.0

    def __str__(self) -> str:
        match self.kind:
            case "busy":
                return "decode without pauses"
            case "prefill":
                return f"prefill, {self.size} tokens"
        return f"decode, {self.size} rows at {self.context} tokens"


class _Measuring:
    """One call of `profile_device`: what was found so far, and how much time is left."""

    def __init__(
        self,
        task: ProfileTask,
        chosen: SampleLayers,
        progress: Progress,
        *,
        clock: Clock,
        sleep: Callable[[float], None],
        power: PowerWindows | None,
    ) -> None:
        self._task = task
        self._chosen = chosen
        self._progress = progress
        self._clock = clock
        self._sleep = sleep
        self._power = power
        self._deadline_s = clock() + task.seconds
        self._done = 0
        few, *more = chosen.rows
        # One row and the prompts come first: what time is too short for is left out from the end.
        self._points = [
            _Point("busy", few, chosen.contexts[0], is_alone=True),
            *(_Point("decode", few, context, is_alone=True) for context in chosen.contexts),
            *(_Point("prefill", tokens) for tokens in chosen.prompts),
            *(_Point("decode", rows, context) for rows in more for context in chosen.contexts),
        ]
        self._total = (power is not None) + len(chosen.loads) * (1 + PASSES * len(self._points))
        self._missing = dict(chosen.missing)
        self._decode: dict[tuple[int, int], list[Timing]] = defaultdict(list)
        self._prefill: dict[int, list[Timing]] = defaultdict(list)
        self._head: dict[int, list[Timing]] = defaultdict(list)
        self._embedding_s: list[float] = []
        self._stage_s: list[float] = []
        self._memory: MemoryCheck | None = None

    def say(self, what: str) -> None:
        self._progress(what, self._done, self._total)
        self._done += 1

    def time_layers(self, executor: TimedExecutor, *, loads_left: int) -> None:
        """Every point of this load, within its share of the time that is left."""
        rounds = Rounds(executor, self._task.boundary, self._clock, self._sleep)
        lengths = [len(layers) for layers in executor.resident]
        now_s = self._clock()
        left_s = max(self._deadline_s - now_s, LOADED_SHARE * self._task.seconds) / loads_left
        end_s = now_s + left_s
        latest_s = end_s + OVERTIME_SHARE * self._task.seconds
        found: dict[_Point, RoundTimes] = {}
        turns = [(number, point) for number in range(PASSES) for point in self._points]
        weight_left = sum(point.weight for _, point in turns)
        for number, point in turns:
            share = point.weight / weight_left
            weight_left -= point.weight
            self.say(str(point))
            now_s = self._clock()
            if number > 0 and (now_s > end_s or point not in found):
                continue
            if now_s > latest_s and any(point.kind == other.kind for other in found):
                reason = f"no time was left for {point} and more; allow more than {self._task.seconds:g} s"
                self._missing.setdefault(point.kind, reason)
                continue
            effort = Effort(
                seconds=max(0.0, end_s - now_s) * share,
                fewest=1 if number else FEWEST,
                most=MOST // PASSES,
            )
            times = self._run(rounds, point, effort, self._pause_s(found, lengths))
            if point in found:
                found[point].add(times)
            else:
                found[point] = times
        self._take(found, lengths)

    def _run(self, rounds: Rounds, point: _Point, effort: Effort, pause_s: float) -> RoundTimes:
        if point.kind == "prefill":
            return rounds.prefill(point.size, effort)
        return rounds.decode(point.size, point.context, effort, 0.0 if point.kind == "busy" else pause_s)

    def _pause_s(self, found: dict[_Point, RoundTimes], lengths: list[int]) -> float:
        busy = found.get(self._points[0])
        if busy is None:
            return 0.0
        layer_s = fit.layer_timing(busy, lengths, 0.0).ms / 1e3
        return min(PAUSE_SHARE * self._task.spec.num_layers * layer_s + PAUSE_HOPS_S, LONGEST_PAUSE_S)

    def _take(self, found: dict[_Point, RoundTimes], lengths: list[int]) -> None:
        alone = [times for point, times in found.items() if point.kind == "decode" and point.is_alone]
        call = fit.call_s(alone, lengths)
        self._stage_s += [call + statistics.median(times.ends) for times in alone]
        for point, times in found.items():
            layer = fit.layer_timing(times, lengths, call)
            if point.kind == "decode":
                self._decode[point.size, point.context].append(layer)
                self._embedding_s += times.embedding
                if times.head:
                    self._head[point.size].append(timing(times.head))
            elif point.kind == "prefill":
                self._prefill[point.size].append(layer)
            if self._power is not None and point.kind == "prefill":
                self._power.prefilling += times.intervals
            elif self._power is not None and point.kind == "busy":
                self._power.decoding += times.intervals

    def check_memory(self, resident: Resident, before_bytes: int | None) -> None:
        """Memory now, with everything loaded and used, against the formula; the largest load counts."""
        after_bytes = anonymous_bytes()
        if before_bytes is None or after_bytes is None:
            self._missing["memory"] = "the kernel does not say how much memory of a process belongs to no file"
            return
        task = self._task
        formula = sum(
            memory_bytes(
                task.spec,
                layers,
                quantization=task.quantization,
                block_size=task.block_size,
                slots=self._chosen.slots,
                context=self._chosen.context,
            )
            for layers in resident
        )
        if self._memory is None or formula > self._memory.formula_bytes:
            self._memory = MemoryCheck(measured_bytes=after_bytes - before_bytes, formula_bytes=formula)

    def profile(self) -> DeviceProfile:
        task = self._task
        decode = {key: fit.averaged(timings) for key, timings in self._decode.items()}
        one_layer = decode[min(decode)]
        head = {rows: fit.averaged(timings) for rows, timings in self._head.items()}
        if not head:
            weight_bytes = head_bytes(task.spec, task.quantization, task.block_size)
            factor = weight_bytes / layer_weight_bytes(task.spec, task.quantization, task.block_size)
            head = {rows: scaled(layer, factor) for (rows, _), layer in decode.items()}
        power = None
        if self._power is None:
            self._missing["power"] = "no sensor was asked"
        else:
            found = self._power.profile(one_layer.ms / min(decode)[0])
            if isinstance(found, str):
                self._missing["power"] = found
            else:
                power = found
        return DeviceProfile(
            name=task.name,
            host=task.host,
            provider=task.provider,
            memory_bytes=task.memory_bytes,
            decode=tuple(
                DecodePoint(rows=rows, context=context, layer=layer)
                for (rows, context), layer in sorted(decode.items())
            ),
            prefill=tuple(
                PrefillPoint(tokens=tokens, layer=fit.averaged(timings))
                for tokens, timings in sorted(self._prefill.items())
            ),
            head=tuple(HeadPoint(rows=rows, head=timing) for rows, timing in sorted(head.items())),
            embedding_ms=1e3 * statistics.median(self._embedding_s) if self._embedding_s else 0.0,
            stage_ms=1e3 * statistics.fmean(self._stage_s),
            power=power,
            memory=self._memory,
            missing=self._missing,
        )


def _listed(resident: Resident) -> str:
    return "layers " + " and ".join(map(str, resident))
