"""What a device knows of its links as they are: parts of the heartbeat, and how they are made of measurements.

A value that is not known is None (or absent), and `missing` says why under the field's name; it is never 0 instead.
"""

from __future__ import annotations

import msgspec

from agent.wire.tcp_state import TcpState

NOT_CONNECTED = "not connected"
NOT_MEASURED = "the kernel has not measured it yet"
NO_PING = "no ping was answered yet; pings go while the link rests"


class LinkObservation(msgspec.Struct, frozen=True):
    """The connection from this device to a peer, as its transport measures it."""

    peer: str
    rtt_ms: float | None = None
    """Smoothed. The kernel's, of what it sends anyway; over an emulated link that of pings, which go while it rests."""
    rtt_deviation_ms: float | None = None
    """Mean deviation of it (RFC 6298)."""
    goodput_bytes_per_s: float | None = None
    """At which the peer's kernel acknowledges; of an emulated link with a rate, that rate."""
    is_lower_bound: bool = False
    """This device had no more to send: the link may carry more than `goodput_bytes_per_s`."""
    resent: float | None = None
    """Share of the connection's TCP segments that were sent more than once: what the radio lost and TCP mended."""
    emulated: bool = False
    missing: dict[str, str] = {}


class RadioObservation(msgspec.Struct, frozen=True):
    """A wireless interface of this device, as its driver counts. Counters are totals since it joined its network."""

    interface: str
    source: str
    """iw or wireless (/proc/net/wireless)."""
    signal_dbm: float | None = None
    tx_bitrate_bits_per_s: float | None = None
    tx_packets: int | None = None
    tx_retries: int | None = None
    tx_failed: int | None = None
    """Packets given up after all their retries."""
    rx_packets: int | None = None
    beacon_losses: int | None = None
    missing: dict[str, str] = {}


_MEASURED = ("rtt_ms", "goodput_bytes_per_s", "resent")


def observation(peer: str, state: TcpState | None) -> LinkObservation:
    """A connection as the kernel sees it."""
    if state is None:
        return LinkObservation(peer, missing=dict.fromkeys(_MEASURED, NOT_CONNECTED))
    values = (state.rtt_ms, state.delivery_bytes_per_s, state.resent)
    return LinkObservation(
        peer,
        rtt_ms=state.rtt_ms,
        rtt_deviation_ms=state.rtt_deviation_ms,
        goodput_bytes_per_s=state.delivery_bytes_per_s,
        is_lower_bound=state.delivery_bytes_per_s is not None and state.is_sender_limited,
        resent=state.resent,
        missing={name: NOT_MEASURED for name, value in zip(_MEASURED, values, strict=True) if value is None},
    )


def emulated_observation(peer: str, bytes_per_s: float) -> LinkObservation:
    """An emulated link before its pings are known: what the kernel would say is of this machine's, not of the link."""
    missing = {"rtt_ms": NO_PING, "resent": "an emulated link loses no segments"}
    if bytes_per_s <= 0.0:
        missing["goodput_bytes_per_s"] = "emulated without a rate: as fast as this machine's"
    return LinkObservation(peer, goodput_bytes_per_s=bytes_per_s or None, emulated=True, missing=missing)


def pinged(link: LinkObservation, rtt_s: float, deviation_s: float) -> LinkObservation:
    """With the round trip of pings, where nothing better is known."""
    if link.rtt_ms is not None:
        return link
    missing = {name: reason for name, reason in link.missing.items() if name != "rtt_ms"}
    return msgspec.structs.replace(link, rtt_ms=1e3 * rtt_s, rtt_deviation_ms=1e3 * deviation_s, missing=missing)
