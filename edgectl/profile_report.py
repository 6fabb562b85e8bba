"""Profiles as text for a terminal and as CSV: what was measured, what differs between two, every point. Pure."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from edgectl.output import mib, table
from planner.profile import ClusterProfile, DecodePoint, DeviceProfile, LinkProfile, PrefillPoint, Timing

CSV_HEADER = (
    "kind",
    "device",
    "peer",
    "rows",
    "context",
    "tokens",
    "ms",
    "p95_ms",
    "samples",
    "outliers",
    "bandwidth_bytes_per_s",
)
MEASURED = ("decode", "prefill", "head", "memory", "power")
"""What a device is measured for; `missing` may name these and facts of its fingerprint."""
CHANGE = 0.05
"""Times closer to each other than this are called equal: two profiles of a quiet device differ by a few per cent."""


def describe_profile(profile: ClusterProfile) -> str:
    """Two tables, devices and links, and why what is missing is missing."""
    coding: str = profile.quantization
    if profile.quantization in ("int8", "int4"):
        coding += f" block {profile.block_size}"
    head = f"{profile.model}, {profile.spec.num_layers} layers, {coding}, boundary {profile.boundary}"
    when = f"measured {profile.created or 'never'}" + (f" by edgectl {profile.version}" if profile.version else "")
    device_header = ("device", "provider", "decode ms", "prefill ms", "head ms", "memory", "idle W", "W", "J/token")
    parts = [f"{head}\n{when}", table(device_header, [_device_row(profile, each) for each in profile.devices])]
    if profile.links:
        link_header = ("from", "to", "latency ms", "Mbit/s", "rtt p50", "rtt p95", "jitter ms")
        parts.append(table(link_header, [_link_row(link) for link in profile.links]))
    missing = _missing(profile)
    if missing:
        parts.append("\n".join(missing))
    parts.append(_legend(profile))
    return "\n\n".join(parts)


def describe_difference(before: ClusterProfile, after: ClusterProfile) -> str:
    """What changed from one profile to another, device by device and link by link."""
    parts = []
    for name in ("model", "quantization", "block_size", "boundary", "version", "created"):
        if getattr(before, name) != getattr(after, name):
            parts.append(f"{name.replace('_', ' ')}: {getattr(before, name)} → {getattr(after, name)}")
    old = {device.name: device for device in before.devices}
    new = {device.name: device for device in after.devices}
    parts += [f"{name}: only in the first" for name in old if name not in new]
    parts += [f"{name}: only in the second" for name in new if name not in old]
    rows = [row for name in old if name in new for row in _device_changes(old[name], new[name])]
    rows += _link_changes(before, after)
    if rows:
        parts.append(table(("what", "before", "after", "change"), rows))
    facts = [line for name in old if name in new for line in _fact_changes(old[name], new[name])]
    return "\n".join([*parts, *facts]) or "no difference"


def profile_csv(profile: ClusterProfile) -> str:
    """One line per measured point, with the header CSV_HEADER; a link's `ms` is its latency."""
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_HEADER, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_points(profile))
    return text.getvalue()


def decode_point(device: DeviceProfile) -> DecodePoint:
    """One row at the shortest context: the point devices are compared by."""
    return min(device.decode, key=lambda point: (point.rows, point.context))


def prefill_point(device: DeviceProfile) -> PrefillPoint:
    """The longest chunk."""
    return max(device.prefill, key=lambda point: point.tokens)


def joules_per_token(profile: ClusterProfile, device: DeviceProfile) -> float | None:
    """What a token costs where the device holds every layer; None where its power could not be measured."""
    if device.power is None or device.power.joules_per_token_layer is None:
        return None
    return device.power.joules_per_token_layer * profile.spec.num_layers


def _device_row(profile: ClusterProfile, device: DeviceProfile) -> tuple[str, ...]:
    power = device.power
    joules = joules_per_token(profile, device)
    head = min(device.head, key=lambda point: point.rows)
    return (
        f"{device.name} (estimate)" if device.estimated else device.name,
        device.provider,
        f"{decode_point(device).layer.ms:.3f}",
        f"{prefill_point(device).layer.ms:.2f}",
        f"{head.head.ms:.2f}",
        mib(device.memory_bytes),
        "-" if power is None else f"{power.idle_w:.1f}",
        "-" if power is None else f"{power.decode_w:.1f}",
        "-" if joules is None else f"{joules:.3f}",
    )


def _link_row(link: LinkProfile) -> tuple[str, ...]:
    return (
        link.source,
        f"{link.destination} (estimate)" if link.estimated else link.destination,
        f"{link.latency_ms:.3f}",
        f"{link.bandwidth_bytes_per_s * 8e-6:,.0f}",
        *(_optional(value) for value in (link.rtt_p50_ms, link.rtt_p95_ms, link.jitter_ms)),
    )


def _legend(profile: ClusterProfile) -> str:
    points = [decode_point(device) for device in profile.devices]
    context = " or ".join(str(each) for each in sorted({point.context for point in points}))
    chunk = " or ".join(str(each) for each in sorted({prefill_point(device).tokens for device in profile.devices}))
    return (
        f"decode: one layer, one token, {context} tokens held; prefill: one layer, {chunk} tokens; "
        "J/token: all layers on the device"
    )


def _missing(profile: ClusterProfile) -> list[str]:
    """Reasons of what the tables lack, once for the devices that share them; facts that nobody knows are counted."""
    owners: dict[tuple[str, str], list[str]] = {}
    unknown: set[str] = set()
    for device in profile.devices:
        for name, reason in device.missing.items():
            if name in MEASURED and (name != "memory" or device.memory is None):
                owners.setdefault((name, reason), []).append(device.name)
            else:
                unknown.add(name)
    lines = [f"{', '.join(devices)}: no {name}: {reason}" for (name, reason), devices in owners.items()]
    if unknown:
        lines.append(f"unknown of some device: {', '.join(sorted(unknown))}; --json has the reasons")
    return lines


def _device_changes(before: DeviceProfile, after: DeviceProfile) -> Iterator[tuple[str, ...]]:
    old_decode = {(point.rows, point.context): point.layer.ms for point in before.decode}
    for point in after.decode:
        if (point.rows, point.context) in old_decode:
            what = f"{after.name} decode ms, {point.rows} rows at {point.context}"
            yield from _change(what, old_decode[point.rows, point.context], point.layer.ms)
    old_prefill = {point.tokens: point.layer.ms for point in before.prefill}
    for chunk in after.prefill:
        if chunk.tokens in old_prefill:
            yield from _change(f"{after.name} prefill ms, {chunk.tokens}", old_prefill[chunk.tokens], chunk.layer.ms)
    old_head = {point.rows: point.head.ms for point in before.head}
    for head in after.head:
        if head.rows in old_head:
            yield from _change(f"{after.name} head ms, {head.rows} rows", old_head[head.rows], head.head.ms)
    yield from _change(f"{after.name} memory MiB", before.memory_bytes / 2**20, after.memory_bytes / 2**20)
    if before.power is not None and after.power is not None:
        yield from _change(f"{after.name} decode W", before.power.decode_w, after.power.decode_w)


def _link_changes(before: ClusterProfile, after: ClusterProfile) -> Iterator[tuple[str, ...]]:
    old = {(link.source, link.destination): link for link in before.links}
    for link in after.links:
        was = old.get((link.source, link.destination))
        if was is not None:
            name = f"{link.source} → {link.destination}"
            yield from _change(f"{name} latency ms", was.latency_ms, link.latency_ms)
            yield from _change(f"{name} Mbit/s", was.bandwidth_bytes_per_s * 8e-6, link.bandwidth_bytes_per_s * 8e-6)


def _change(what: str, before: float, after: float) -> Iterator[tuple[str, ...]]:
    if before == after or (before > 0 and abs(after / before - 1) < CHANGE):
        return
    ratio = f"{100 * (after / before - 1):+.0f} %" if before > 0 else "-"
    yield what, f"{before:,.3f}", f"{after:,.3f}", ratio


def _fact_changes(before: DeviceProfile, after: DeviceProfile) -> Iterator[str]:
    for name in sorted(before.fingerprint.keys() | after.fingerprint.keys()):
        was, now = before.fingerprint.get(name), after.fingerprint.get(name)
        if isinstance(was, str) and isinstance(now, str) and was != now:
            yield f"{after.name}: {name} {was} → {now}"
        elif (was is None) != (now is None):
            yield f"{after.name}: {name} {'unknown' if was is None else was} → {'unknown' if now is None else now}"


def _points(profile: ClusterProfile) -> Iterator[dict[str, object]]:
    for device in profile.devices:
        name = device.name
        for decode in device.decode:
            where = {"kind": "decode", "device": name, "rows": decode.rows, "context": decode.context}
            yield where | _timing(decode.layer)
        for prefill in device.prefill:
            yield {"kind": "prefill", "device": name, "tokens": prefill.tokens} | _timing(prefill.layer)
        for head in device.head:
            yield {"kind": "head", "device": name, "rows": head.rows} | _timing(head.head)
        yield {"kind": "embedding", "device": name, "ms": device.embedding_ms}
        yield {"kind": "stage", "device": name, "ms": device.stage_ms}
    for link in profile.links:
        yield {
            "kind": "link",
            "device": link.source,
            "peer": link.destination,
            "ms": link.latency_ms,
            "bandwidth_bytes_per_s": link.bandwidth_bytes_per_s,
        }


def _timing(timing: Timing) -> dict[str, object]:
    return {"ms": timing.ms, "p95_ms": timing.p95_ms, "samples": timing.samples, "outliers": timing.outliers}


def _optional(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
