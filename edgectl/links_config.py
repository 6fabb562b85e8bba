"""`[[links]]` of cluster.toml: links between devices that are emulated, so that a plan can be tried before it is wired.

One entry per direction. What is listed delays and loses; a pair that is not listed goes as fast as the network does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence

from agent.config import parse_size
from agent.errors import ConfigError
from agent.wire.addresses import LinkShape
from agent.wire.link_clock import MAX_BURST_BYTES, MAX_BYTES_PER_S, MAX_DELAY_MS
from edgectl.adaptive.link_channel import ChannelKeys, read_channel
from planner.channel import Channel

MIN_BYTES_PER_S = 1
"""The largest frame takes two years: no clock counts further than it must."""

_BITS = re.compile(r"(\d+(?:\.\d+)?)\s*([kMGT]?)bit(?:/s)?", re.IGNORECASE)
_THOUSANDS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}


class LinkConfig(ChannelKeys, frozen=True, kw_only=True, rename={"source": "from", "destination": "to"}):
    """One `[[links]]` table: an emulated link from one device to another."""

    source: str
    """`from`: the device that sends."""

    destination: str
    """`to`: the device that receives."""

    rate: str = ""
    """Like "10 Mbit", or in bytes per second "1.25 MB". Empty: as fast as it goes."""

    burst: str = ""
    """What leaves at once after a pause, like "16 KiB": the depth of a token bucket. Empty: nothing."""

    latency_ms: float = 0.0
    """One way."""

    jitter_ms: float = 0.0
    """Standard deviation of the latency; frames keep their order."""

    @property
    def shape(self) -> LinkShape:
        return LinkShape(
            peer=self.destination,
            bytes_per_s=parse_rate(self.rate) if self.rate else 0.0,
            burst_bytes=parse_size(self.burst or "0"),
            latency_ms=self.latency_ms,
            jitter_ms=self.jitter_ms,
            seed=self.seed,
        )


def parse_rate(text: str) -> float:
    """Bytes per second of "10 Mbit", "1 Gbit/s" or "20 MB". Raises ValueError."""
    match = _BITS.fullmatch(text.strip())
    rate = float(parse_size(text)) if match is None else float(match[1]) * _THOUSANDS[match[2].lower()] / 8
    if rate <= 0:
        raise ValueError(f"{text!r} is no rate; leave it out for a link that goes as fast as the network does")
    return rate


def check_links(source: str, links: Sequence[LinkConfig], devices: Collection[str]) -> None:
    """Raises ConfigError naming the file, the entry and the key."""
    pairs: set[tuple[str, str]] = set()
    for index, link in enumerate(links):
        where = f"{source}: links[{index}]"
        for key, name in (("from", link.source), ("to", link.destination)):
            if name not in devices:
                known = ", ".join(devices) or "none"
                raise ConfigError(f"{where}.{key}: {name!r} is not among the devices: {known}")
        if link.source == link.destination:
            raise ConfigError(f"{where}.to: a link from {link.source} to itself")
        if (link.source, link.destination) in pairs:
            raise ConfigError(f"{where}: the link from {link.source} to {link.destination} is listed twice")
        pairs.add((link.source, link.destination))
        for key, value, most in (
            ("latency_ms", link.latency_ms, MAX_DELAY_MS),
            ("jitter_ms", link.jitter_ms, MAX_DELAY_MS),
        ):
            if not 0 <= value <= most:
                raise ConfigError(f"{where}.{key}: {value} is outside 0 to {most:g}")
        read_channel(link, where)
        _check_amount(f"{where}.rate", link.rate, parse_rate, (MIN_BYTES_PER_S, MAX_BYTES_PER_S))
        _check_amount(f"{where}.burst", link.burst, parse_size, (0, MAX_BURST_BYTES))


def _check_amount(where: str, text: str, parse: Callable[[str], float], limits: tuple[float, float]) -> None:
    """Raises ConfigError for what a device would refuse, or cannot be read; empty is no wish."""
    least, most = limits
    try:
        amount = parse(text) if text else least
    except (ValueError, OverflowError) as problem:
        raise ConfigError(f"{where}: {problem}") from problem
    if not least <= amount <= most:
        raise ConfigError(f"{where}: {text[:40]!r} is {amount:g} bytes, {least:g} to {most:g} are emulated")


def shapes_of(links: Sequence[LinkConfig]) -> Mapping[str, tuple[LinkShape, ...]]:
    """Emulated links by the device they begin at."""
    found: dict[str, tuple[LinkShape, ...]] = {}
    for link in links:
        found[link.source] = (*found.get(link.source, ()), link.shape)
    return found


def channels_of(links: Sequence[LinkConfig]) -> Mapping[tuple[str, str], Channel]:
    """What links do to hidden states, by their two ends. Raises ConfigError for a trace that cannot be read."""
    found = ((link, read_channel(link, f"links from {link.source} to {link.destination}")) for link in links)
    return {(link.source, link.destination): channel for link, channel in found if channel is not None}
