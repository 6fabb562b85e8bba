"""A profile that exists is usable: every number is checked when it is made."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from planner.profile import DecodePoint, HeadPoint, LinkProfile, PowerProfile, PrefillPoint, Timing
from tests.fakes.random_profiles import plain_device, plain_link, plain_profile


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, -math.inf])
def test_times_are_positive_numbers(value: float) -> None:
    with pytest.raises(ValueError, match="ms must be a positive number"):
        Timing(ms=value)
    with pytest.raises(ValueError, match="p95_ms must be a positive number"):
        Timing(ms=1, p95_ms=value)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: DecodePoint(rows=0, context=0, layer=Timing(ms=1)), "rows"),
        (lambda: DecodePoint(rows=1, context=-1, layer=Timing(ms=1)), "context"),
        (lambda: PrefillPoint(tokens=0, layer=Timing(ms=1)), "tokens"),
        (lambda: HeadPoint(rows=0, head=Timing(ms=1)), "rows"),
        (lambda: Timing(ms=1, samples=-1), "samples"),
        (lambda: PowerProfile(idle_w=-1, decode_w=1, prefill_w=1, source="sysfs"), "idle_w"),
        (lambda: PowerProfile(idle_w=1, decode_w=math.nan, prefill_w=1, source="sysfs"), "decode_w"),
        (lambda: plain_device("a", memory_bytes=0), "memory_bytes"),
        (lambda: plain_device("a", stage_ms=-0.1), "stage_ms"),
        (lambda: plain_device("a", decode=()), "decode needs at least one point"),
        (lambda: plain_device("a", prefill=()), "prefill needs at least one point"),
        (lambda: plain_device("a", head=()), "head needs at least one point"),
        (lambda: plain_link("a", "b", latency_ms=-1), "latency_ms"),
        (lambda: plain_link("a", "b", bandwidth=0), "bandwidth_bytes_per_s"),
        (lambda: plain_link("a", "a"), "a link from a to itself"),
    ],
)
def test_a_wrong_number_is_named(make: object, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        make()  # type: ignore[operator]


def test_unknown_stays_unknown() -> None:
    link = LinkProfile(source="a", destination="b", latency_ms=0, bandwidth_bytes_per_s=1)
    assert link.rtt_p50_ms is None
    assert Timing(ms=1).p95_ms is None


def test_devices_have_names_of_their_own_and_links_know_them() -> None:
    a, b = plain_device("a"), plain_device("b")
    with pytest.raises(ValueError, match="devices: a is there twice"):
        plain_profile(a, a)
    with pytest.raises(ValueError, match="needs at least one"):
        plain_profile()
    with pytest.raises(ValueError, match="links: c is not among the devices: a, b"):
        replace(plain_profile(a, b), links=(plain_link("a", "c"),))


def test_devices_by_name() -> None:
    profile = plain_profile(plain_device("a"), plain_device("b"))
    assert profile.device("b") is profile.devices[1]
    with pytest.raises(KeyError):
        profile.device("c")
