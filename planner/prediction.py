"""What a plan is expected to do: one route's times, rate, memory and energy by the cost model."""

from __future__ import annotations

import math
from dataclasses import dataclass

from planner.cost import CostModel
from planner.errors import BadProfile
from planner.pipeline import PipelineTimes, no_bubbles_rate
from planner.types import LayerRange, Route


@dataclass(frozen=True, slots=True)
class StagePrediction:
    """One stage; times per decoded token of one session, except for the wait."""

    device: str
    layers: LayerRange
    memory_bytes: int
    """Of the device, for all its stages of this route."""
    memory_available_bytes: int
    compute_ms: float
    hop_ms: float
    """Behind the stage: hidden states to the next one, or the token back to the source."""
    wait_ms: float
    """How long a micro-batch stands before the stage when the pipeline is full."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """One route under one workload."""

    ms_per_token: float
    """Decode alone, one session."""
    time_to_first_token_ms: float
    """The prompt's chunks one after another through all stages, and the token's way back."""
    tokens_per_s: float
    """Best rate without bubbles over micro-batches and rows within the sessions."""
    micro_batches: int
    rows: int
    joules_per_token: float | None
    """All devices of the route, prompt included, idle power included; None where a device's power is unknown."""
    objective_ms: float
    """(time to first token + (G - 1) * ms per token) / G."""
    stages: tuple[StagePrediction, ...]


def predict(model: CostModel, route: Route, sessions: int) -> Prediction:
    """What `route` does with up to `sessions` sequences at a time. Raises UnknownName and ValueError."""
    if sessions < 1:
        raise ValueError(f"sessions must be at least 1, it is {sessions}")
    if route.layers.stop != model.spec.num_layers:
        raise ValueError(f"the route ends at layer {route.layers.stop}, the model has {model.spec.num_layers}")
    if route.source != model.source:
        raise ValueError(f"the route starts at {route.source}, the source is {model.source}")
    alone = model.times(route)
    first_ms = time_to_first_token_ms(model, route)
    micro_batches, rows = best_batch(model, route, sessions)
    full = model.times(route, rows)
    waits = waits_ms(full, micro_batches)
    hops = [*(a + b for a, b in zip(alone.transfer_ms, alone.latency_ms, strict=True)), alone.return_ms]
    return Prediction(
        ms_per_token=alone.round_ms,
        time_to_first_token_ms=first_ms,
        tokens_per_s=no_bubbles_rate(full, micro_batches, rows),
        micro_batches=micro_batches,
        rows=rows,
        joules_per_token=joules_per_token(model, route),
        objective_ms=_request_ms(model, route) / model.workload.tokens,
        stages=tuple(
            StagePrediction(
                device=stage.device,
                layers=stage.layers,
                memory_bytes=model.memory_used_bytes(stage.device, route, sessions),
                memory_available_bytes=model.memory_available_bytes(stage.device),
                compute_ms=alone.compute_ms[place],
                hop_ms=hops[place],
                wait_ms=waits[place],
            )
            for place, stage in enumerate(route.stages)
        ),
    )


def time_to_first_token_ms(model: CostModel, route: Route) -> float:
    """Chunk after chunk through every stage: what they could overlap is left out, so this is from above."""
    alone = model.times(route)
    compute_ms = sum(model.prefill_ms(stage.device, stage.layers) for stage in route.stages)
    hops_ms = model.workload.prompt * sum(alone.transfer_ms) + len(model.chunks) * sum(alone.latency_ms)
    return compute_ms + hops_ms + alone.return_ms


def _request_ms(model: CostModel, route: Route) -> float:
    """Prompt and all generated tokens; inf where a link is missing."""
    steps = model.workload.tokens - 1
    first_ms = time_to_first_token_ms(model, route)
    return first_ms + steps * model.times(route).round_ms if steps else first_ms


def best_batch(model: CostModel, route: Route, sessions: int) -> tuple[int, int]:
    """Micro-batches and rows of the highest rate; of equals the fewest sequences, then the fewest rows."""

    def merit(batch: tuple[int, int]) -> tuple[float, int, int]:
        micro_batches, rows = batch
        rate = no_bubbles_rate(times[rows], micro_batches, rows)
        # Rates that differ by rounding are equal.
        return (float(f"{rate:.9e}"), -micro_batches * rows, -rows)

    times = {rows: model.times(route, rows) for rows in range(1, sessions + 1)}
    return max(((m, rows) for rows in times for m in range(1, sessions // rows + 1)), key=merit)


def waits_ms(times: PipelineTimes, micro_batches: int) -> tuple[float, ...]:
    """[S] how long a micro-batch stands before each stage of a full pipeline without bubbles.

    Services are constant, so in the long run all waiting is before the slowest server: what m turns of it take beyond
    one round. A slow link's queue counts to the stage behind it.
    """
    waits = [0.0] * len(times.compute_ms)
    total = micro_batches * times.bottleneck_ms - times.round_ms
    if not 0 < total < math.inf:
        return tuple(waits)
    if max(times.transfer_ms, default=0.0) >= times.bottleneck_ms:
        waits[times.transfer_ms.index(max(times.transfer_ms)) + 1] = total
        return tuple(waits)
    servers = times.servers or tuple(str(place) for place in range(len(waits)))
    busy = [sum(ms for ms, other in zip(times.compute_ms, servers, strict=True) if other == own) for own in servers]
    waits[busy.index(max(busy))] = total
    return tuple(waits)


def joules_per_token(model: CostModel, route: Route) -> float | None:
    """Energy of a request by its generated tokens: busy time at power above idle, and idle power all the time."""
    generated = model.workload.tokens
    decode_steps = generated - 1
    request_ms = _request_ms(model, route)
    try:
        powers = {stage.device: model.power(stage.device) for stage in route.stages}
    except BadProfile:
        return None
    if math.isinf(request_ms):
        return math.inf
    millijoules = request_ms * sum(power.idle_w for power in powers.values())
    for stage in route.stages:
        power = powers[stage.device]
        prefill_ms = model.prefill_ms(stage.device, stage.layers)
        decode_ms = decode_steps * model.decode_ms(stage.device, stage.layers)
        millijoules += prefill_ms * max(0.0, power.prefill_w - power.idle_w)
        millijoules += decode_ms * max(0.0, power.decode_w - power.idle_w)
    return 1e-3 * millijoules / generated
