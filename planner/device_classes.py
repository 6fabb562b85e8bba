"""Which devices are interchangeable: swapping two of them changes the cost of no placement."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

from planner.problem import Costs
from planner.profile import ClusterProfile, DeviceProfile


def link_matrices(profile: ClusterProfile) -> tuple[Costs, Costs]:
    """[M, M] latency in ms and bandwidth in bytes per second, by devices in profile order; 0 bandwidth is no link."""
    place = {device.name: index for index, device in enumerate(profile.devices)}
    latency_ms = np.zeros((len(place), len(place)))
    bandwidth = np.zeros((len(place), len(place)))
    for link in profile.links:
        at = place[link.source], place[link.destination]
        latency_ms[at], bandwidth[at] = link.latency_ms, link.bandwidth_bytes_per_s
    return latency_ms, bandwidth


def device_classes(profile: ClusterProfile, source: str) -> tuple[tuple[str, ...], ...]:
    """Devices by class, the source alone in the first, the others in profile order.

    Two devices share a class when times, memory, power and provider are equal, and so are their links: to each other
    in both directions, and to and from every third device. If swapping a with b and b with c changes nothing, then
    neither does swapping a with c, so one member speaks for its class. A host with several devices makes the sharing
    of its cores part of a device's identity.
    """
    hosts = Counter(device.host for device in profile.devices)
    kinds = [_kind(device, hosts) for device in profile.devices]
    links = np.stack(link_matrices(profile))
    classes: list[list[int]] = []
    for index, device in enumerate(profile.devices):
        if device.name == source:
            classes.insert(0, [index])
            continue
        for members in classes:
            first = members[0]
            alike = profile.devices[first].name != source and kinds[first] == kinds[index]
            if alike and _links_alike(links, first, index):
                members.append(index)
                break
        else:
            classes.append([index])
    return tuple(tuple(profile.devices[index].name for index in members) for members in classes)


def _kind(device: DeviceProfile, hosts: Counter[str]) -> Hashable:
    shared_host = device.host if device.host and hosts[device.host] > 1 else None
    curves = (
        tuple((point.rows, point.context, point.layer.ms) for point in device.decode),
        tuple((point.tokens, point.layer.ms) for point in device.prefill),
        tuple((point.rows, point.head.ms) for point in device.head),
    )
    power = device.power and (device.power.idle_w, device.power.decode_w, device.power.prefill_w)
    return curves, device.embedding_ms, device.stage_ms, device.memory_bytes, device.provider, power, shared_host


def _links_alike(links: Costs, a: int, b: int) -> bool:
    """Whether swapping devices a and b leaves both [M, M] matrices as they are."""
    if not np.array_equal(links[:, a, b], links[:, b, a]):
        return False
    others = _all_but(links.shape[1], (a, b))
    same_out = np.array_equal(links[:, a, others], links[:, b, others])
    return same_out and np.array_equal(links[:, others, a], links[:, others, b])


def _all_but(size: int, left_out: Sequence[int]) -> list[int]:
    return [index for index in range(size) if index not in left_out]
