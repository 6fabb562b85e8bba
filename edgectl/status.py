"""What `edgectl status` shows, as a JSON object computed from the cluster and the devices' telemetry. Pure.

Times are means since the workers started. The time on the wires is measured at the source as a whole (send to answer
less the time held downstream) and split over the hops in proportion to their round-trip times.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from agent.device.telemetry import REFUSED_PREFIX, HistogramName, mean, quantile
from agent.wire.messages import Telemetry
from agent.wire.round_trip import split_wire_s
from edgectl.cluster import Cluster
from edgectl.devices import DeviceRecord
from planner.types import Plan, Stage, StageCost


def status_of(cluster: Cluster, now: float) -> dict[str, object]:
    """The whole status; every value is a JSON type, unknown numbers are null."""
    deployment = cluster.deployment
    plan = deployment.plan
    health = cluster.health()
    telemetry = cluster.telemetry()
    source = telemetry.get(plan.routes[0].source) if plan is not None else None
    step_s = _mean(source, "decode_step_seconds")
    return {
        "ready": health.ready,
        "detail": health.detail,
        "phase": deployment.phase.value,
        "model": deployment.order.model,
        "digest": deployment.order.digest,
        "plan": None if plan is None else plan_of(plan),
        "epoch": deployment.epoch or None,
        "devices": [_device(record, plan, now) for record in cluster.devices],
        "stages": stages_of(plan, telemetry) if plan is not None else [],
        "tokens_per_s": None if not step_s else round(1 / step_s, 3),
        "ms_per_token": _ms(step_s),
        "predicted": _predicted(plan, step_s),
        "sessions": {
            "running": cluster.sessions.running,
            "queued": cluster.sessions.queued,
            "opened": cluster.sessions.counts.opened,
            "ended": cluster.sessions.counts.ended,
            "failed": cluster.sessions.counts.failed,
        },
        "tokens": cluster.sessions.counts.tokens,
        "frames_refused": frames_refused(telemetry),
    }


def plan_of(plan: Plan) -> dict[str, object]:
    """What does not depend on a device."""
    return {
        "quantization": plan.quantization,
        "block_size": plan.block_size,
        "boundary": plan.boundary,
        "codec": plan.codec,
        "context": plan.context,
        "layers": plan.routes[0].layers.stop,
        "source": plan.routes[0].source,
    }


def stages_of(plan: Plan, telemetry: Mapping[str, Telemetry]) -> list[dict[str, object]]:
    """One object per stage of the route: where a token spends its time."""
    stages = plan.routes[0].stages
    wires_ms = _split_wire([telemetry.get(stage.device) for stage in stages])
    costs: Sequence[StageCost | None] = plan.costs or (None,) * len(stages)
    return [
        _stage(stage, telemetry.get(stage.device), wire_ms, cost)
        for stage, wire_ms, cost in zip(stages, wires_ms, costs, strict=True)
    ]


def frames_refused(telemetry: Mapping[str, Telemetry]) -> dict[str, int]:
    """Refused data frames by reason, over all devices."""
    total: dict[str, int] = {}
    for measured in telemetry.values():
        for name, count in measured.counters.items():
            if name.startswith(REFUSED_PREFIX):
                reason = name[len(REFUSED_PREFIX) :]
                total[reason] = total.get(reason, 0) + count
    return total


def _device(record: DeviceRecord, plan: Plan | None, now: float) -> dict[str, object]:
    hello, heartbeat = record.hello, record.heartbeat
    allotment = next((a for a in plan.allotments if a.device == record.name), None) if plan is not None else None
    resident = record.load.resident if record.load is not None else ()
    return {
        "name": record.name,
        "state": record.state.value,
        "provider": hello.provider if hello is not None else None,
        "agent_version": hello.agent_version if hello is not None else None,
        "layers": [[start, stop] for start, stop in resident],
        "memory_bytes": record.loaded_bytes or (allotment.memory_bytes if allotment is not None else 0),
        "memory_available_bytes": hello.memory_bytes if hello is not None else None,
        "resident_bytes": heartbeat.resident_bytes if heartbeat is not None else None,
        "busy": heartbeat.busy if heartbeat is not None else "",
        "heard_s": round(now - record.heard, 3) if hello is not None else None,
        "problem": record.problem,
    }


def _predicted(plan: Plan | None, step_s: float | None) -> dict[str, object] | None:
    """What the plan expects of the whole, and the measured time per token over the expected one; null without."""
    if plan is None or not plan.predicted:
        return None
    expected_ms = plan.predicted.get("ms_per_token")
    ratio = round(step_s * 1e3 / expected_ms, 3) if step_s and expected_ms else None
    return {**plan.predicted, "measured_over_predicted": ratio}


def _stage(
    stage: Stage, measured: Telemetry | None, wire_ms: float | None, cost: StageCost | None
) -> dict[str, object]:
    counters = measured.counters if measured is not None else {}
    frames = counters.get("decode_frames_sent", 0)
    return {
        "device": stage.device,
        "layers": [stage.layers.start, stage.layers.stop],
        "compute_ms": _ms(_mean(measured, "decode_compute_seconds")),
        "wire_ms": wire_ms,
        "wait_ms": _ms(_mean(measured, "decode_wait_seconds")),
        "predicted_compute_ms": None if cost is None else round(cost.compute_ms, 3),
        "predicted_hop_ms": None if cost is None else round(cost.hop_ms, 3),
        "bytes_per_token": round(counters.get("decode_bytes_sent", 0) / frames, 1) if frames else None,
        "residual_saturated": counters.get("residual_saturated", 0),
    }


def _split_wire(stages: Sequence[Telemetry | None]) -> list[float | None]:
    """Milliseconds on the wire behind each stage; the hop behind the last one carries the token to the source."""
    total_s = _mean(stages[0], "decode_wire_seconds")
    if total_s is None:
        return [None] * len(stages)
    round_trips = [_median(stage, "hop_rtt_seconds") for stage in stages]
    known = [round_trip for round_trip in round_trips if round_trip is not None]
    # A hop that has not answered a ping yet counts like the average of the others.
    assumed = sum(known) / len(known) if known else 1.0
    weights = [assumed if round_trip is None else round_trip for round_trip in round_trips]
    return [_ms(part_s) for part_s in split_wire_s(total_s, weights)]


def _mean(measured: Telemetry | None, name: HistogramName) -> float | None:
    if measured is None or name not in measured.histograms:
        return None
    value = mean(measured.histograms[name])
    return None if math.isnan(value) else value


def _median(measured: Telemetry | None, name: HistogramName) -> float | None:
    if measured is None or name not in measured.histograms:
        return None
    value = quantile(measured.histograms[name], 0.5)
    return None if math.isnan(value) else value


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 3)
