"""Where a token's time went while a load ran: what devices counted before and after it. Pure.

Source: GET /metrics, the sums and counts of each device's histograms (agent.device.telemetry). A *round* is one decode
step of one micro-batch, and begins with a run of its source; every other device's sums are shared out over the rounds:

    step = compute + wait + wire + overhead behind the source + at the source

step: one token to the next, at the source. compute and wait: summed over the devices. wire: send to answer less the
time frames were held behind the source; on a busy machine the threads that send and hear wait for a processor, and that
is in it. overhead behind the source: held there, less compute and wait. at the source: what is left. With several
routes these are means over all rounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

Json = dict[str, object]

PREFIX = "edge_"
_TIMES = (
    "decode_compute_seconds",
    "decode_wait_seconds",
    "decode_held_seconds",
    "decode_wire_seconds",
    "decode_step_seconds",
    "prefill_compute_seconds",
    "prefill_wait_seconds",
)
_COUNTS = ("decode_bytes_sent", "decode_frames_sent", "tokens_sampled", "frames_resent", "duplicates_dropped")


@dataclass(frozen=True, slots=True)
class Total:
    """Seconds and how many durations they are the sum of."""

    seconds: float = 0.0
    count: float = 0.0

    @property
    def mean_ms(self) -> float | None:
        return 1e3 * self.seconds / self.count if self.count else None


@dataclass(slots=True)
class DeviceTotals:
    """What one device counted."""

    times: dict[str, Total] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)

    def time(self, name: str) -> Total:
        return self.times.get(name, Total())


def totals_of(metrics: str) -> dict[str, DeviceTotals]:
    """Totals by device of a text of GET /metrics. Raises ValueError when it is none."""
    totals: dict[str, DeviceTotals] = {}
    for family in text_string_to_metric_families(metrics):
        name = family.name.removeprefix(PREFIX)
        if name not in _TIMES and name not in _COUNTS:
            continue
        for sample in family.samples:
            device = sample.labels.get("device")
            if device is None:
                continue
            of_device = totals.setdefault(device, DeviceTotals())
            if name in _COUNTS:
                of_device.counts[name] = of_device.counts.get(name, 0.0) + sample.value
                continue
            known = of_device.time(name)
            if sample.name.endswith("_sum"):
                of_device.times[name] = Total(sample.value, known.count)
            elif sample.name.endswith("_count"):
                of_device.times[name] = Total(known.seconds, sample.value)
    return totals


def between(before: Mapping[str, DeviceTotals], after: Mapping[str, DeviceTotals]) -> dict[str, DeviceTotals]:
    """What was added by each device that is there afterwards; a worker that started anew counts from its start."""
    added = {}
    for device, later in after.items():
        earlier = before.get(device, DeviceTotals())
        shrunk = any(later.time(name).count < total.count for name, total in earlier.times.items())
        shrunk |= any(later.counts.get(name, 0.0) < count for name, count in earlier.counts.items())
        if shrunk:
            earlier = DeviceTotals()
        added[device] = DeviceTotals(
            {
                name: Total(total.seconds - earlier.time(name).seconds, total.count - earlier.time(name).count)
                for name, total in later.times.items()
            },
            {name: count - earlier.counts.get(name, 0.0) for name, count in later.counts.items()},
        )
    return added


def stages_of(added: Mapping[str, DeviceTotals], seconds: float) -> list[Json]:
    """Per device that computed: share of the time it did, and its means; `seconds` is how long the load took."""
    stages: list[Json] = []
    for device, totals in added.items():
        decode, prefill = totals.time("decode_compute_seconds"), totals.time("prefill_compute_seconds")
        if not decode.count and not prefill.count:
            continue
        frames = totals.counts.get("decode_frames_sent", 0.0)
        stages.append(
            {
                "device": device,
                "utilization": _share(decode.seconds + prefill.seconds, seconds),
                "decode_utilization": _share(decode.seconds, seconds),
                "prefill_utilization": _share(prefill.seconds, seconds),
                "decode_runs": int(decode.count),
                "prefill_runs": int(prefill.count),
                "compute_ms": _ms(decode.mean_ms),
                "wait_ms": _ms(totals.time("decode_wait_seconds").mean_ms),
                "prefill_compute_ms": _ms(prefill.mean_ms),
                "prefill_wait_ms": _ms(totals.time("prefill_wait_seconds").mean_ms),
                "bytes_per_frame": round(totals.counts["decode_bytes_sent"] / frames, 1) if frames else None,
                "frames_resent": int(totals.counts.get("frames_resent", 0)),
            }
        )
    return stages


def token_time_of(added: Mapping[str, DeviceTotals]) -> Json | None:
    """Milliseconds of one decode step and where they went; None where no step was measured."""
    sources = [totals for totals in added.values() if totals.time("decode_step_seconds").count]
    steps = _sum(sources, "decode_step_seconds")
    rounds = _sum(sources, "decode_compute_seconds").count
    if not rounds or steps.mean_ms is None:
        return None

    def per_round_ms(seconds: float) -> float:
        return 1e3 * seconds / rounds

    everyone = list(added.values())
    behind = [totals for totals in everyone if not totals.time("decode_step_seconds").count]
    compute_s = _sum(everyone, "decode_compute_seconds").seconds
    wait_s = _sum(everyone, "decode_wait_seconds").seconds
    held_s = _sum(everyone, "decode_held_seconds").seconds
    used_behind_s = sum(_sum(behind, f"decode_{what}_seconds").seconds for what in ("compute", "wait"))
    wire_ms = _sum(sources, "decode_wire_seconds").mean_ms or 0.0
    overhead_ms = per_round_ms(max(0.0, held_s - used_behind_s)) if held_s else 0.0
    parts = {
        "compute_ms": per_round_ms(compute_s),
        "wait_ms": per_round_ms(wait_s),
        "wire_ms": wire_ms,
        "overhead_ms": overhead_ms,
    }
    source_ms = max(0.0, steps.mean_ms - sum(parts.values()))
    return {
        "step_ms": _ms(steps.mean_ms),
        **{name: _ms(value) for name, value in parts.items()},
        "source_ms": _ms(source_ms),
        "tokens_per_round": _per(sum(totals.counts.get("tokens_sampled", 0.0) for totals in everyone), rounds),
    }


def _sum(devices: list[DeviceTotals], name: str) -> Total:
    each = [totals.time(name) for totals in devices]
    return Total(sum(total.seconds for total in each), sum(total.count for total in each))


def _share(part: float, whole: float) -> float | None:
    return round(part / whole, 4) if whole > 0 else None


def _per(count: float, rounds: float) -> float:
    return round(count / rounds, 3)


def _ms(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
