"""What `edgectl status` shows, as a JSON object computed from the cluster and the devices' telemetry. Pure.

Times are means since the workers started. The time on the wires is measured at the source as a whole (send to answer
less the time held downstream) and split over the hops in proportion to their round-trip times.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec

from agent.device.telemetry import REFUSED_PREFIX, HistogramName, mean, quantile
from agent.wire.messages import Telemetry
from agent.wire.round_trip import split_wire_s
from edgectl.adaptive.status import adaptive_of, present_plan, schedules_of
from edgectl.cluster import Cluster
from edgectl.devices import DeviceRecord
from edgectl.routes import BatchState
from planner.types import Plan, Stage, StageCost


def status_of(cluster: Cluster, now: float) -> dict[str, object]:
    """The whole status; every value is a JSON type, unknown numbers are null."""
    deployment = cluster.deployment
    plan = present_plan(cluster)
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
        "routes": routes_of(cluster),
        "tokens_per_s": _tokens_per_s(cluster, step_s, now),
        "ms_per_token": _ms(step_s),
        "predicted": _predicted(plan, step_s),
        "sessions": {
            "running": cluster.sessions.running,
            "queued": cluster.sessions.queued,
            "opened": cluster.sessions.counts.opened,
            "ended": cluster.sessions.counts.ended,
            "failed": cluster.sessions.counts.failed,
            **load_of(cluster),
        },
        "tokens": cluster.sessions.counts.tokens,
        "frames_refused": frames_refused(telemetry),
        "adaptive": adaptive_of(cluster),
        "schedules": schedules_of(cluster),
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
    """One object per stage, route by route: where a token spends its time.

    What is measured is the device's; one that has stages of several routes says the same at each.
    """
    found = []
    for number, route in enumerate(plan.routes):
        wires_ms = _split_wire([telemetry.get(stage.device) for stage in route.stages])
        # Costs are those of the first route; the others are copies of it, on other devices.
        costs: Sequence[StageCost | None] = plan.costs if plan.costs and not number else (None,) * len(route.stages)
        for stage, wire_ms, cost in zip(route.stages, wires_ms, costs, strict=True):
            found.append({**_stage(stage, telemetry.get(stage.device), wire_ms, cost), "route": number})
    return found


def routes_of(cluster: Cluster) -> list[dict[str, object]]:
    """Each route with its micro-batches, and its pace as the coordinator observes it."""
    used = cluster.sessions.in_use()
    traffic = cluster.sessions.traffic
    found = []
    for record in cluster.deployment.routes:
        pace = traffic.paces.get(record.index)
        sessions = traffic.sessions_on(record.index)
        found.append(
            {
                "devices": list(record.devices),
                "rows": sum(batch.rows for batch in record.micro_batches if batch.state is BatchState.OPEN),
                "rows_in_use": sum(used[batch.number] for batch in record.micro_batches),
                "ms_per_token": _ms(pace.token_s(max(1, sessions)) if pace is not None else None),
                "micro_batches": [
                    {
                        "number": batch.number,
                        "epoch": batch.epoch,
                        "state": batch.state.value,
                        "rows": batch.rows,
                        "rows_in_use": used[batch.number],
                        "problem": batch.problem,
                    }
                    for batch in record.micro_batches
                ],
            }
        )
    return found


def load_of(cluster: Cluster) -> dict[str, object]:
    """How full it is: rows, who waits by the beginning of the key's digest, and for how long a newcomer would."""
    load = cluster.load()
    return {
        "rows": load.rows,
        "rows_in_use": load.rows_in_use,
        "queued_by_key": dict(load.queued_by_key),
        "expected_wait_s": None if load.expected_wait_s is None else round(load.expected_wait_s, 3),
    }


def _tokens_per_s(cluster: Cluster, step_s: float | None, now: float) -> float | None:
    """Of all sessions together while there are any; before the first, of one session by the source's telemetry."""
    observed = cluster.sessions.traffic.rate.per_s(now)
    if observed is None and step_s:
        observed = 1 / step_s
    return None if observed is None else round(observed, 3)


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
        "state": "suspected" if record.is_suspected else record.state.value,
        "provider": hello.provider if hello is not None else None,
        "agent_version": hello.agent_version if hello is not None else None,
        "layers": [[start, stop] for start, stop in resident],
        "memory_bytes": record.loaded_bytes or (allotment.memory_bytes if allotment is not None else 0),
        "memory_available_bytes": hello.memory_bytes if hello is not None else None,
        "resident_bytes": heartbeat.resident_bytes if heartbeat is not None else None,
        "busy": heartbeat.busy if heartbeat is not None else "",
        "heard_s": round(now - record.heard, 3) if hello is not None else None,
        "problem": record.problem,
        "links": [] if heartbeat is None else [msgspec.to_builtins(link) for link in heartbeat.telemetry.links],
        "radios": [] if heartbeat is None else [msgspec.to_builtins(radio) for radio in heartbeat.radios],
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
        "bytes_per_frame": round(counters.get("decode_bytes_sent", 0) / frames, 1) if frames else None,
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
