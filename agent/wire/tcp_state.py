"""What the kernel knows of a TCP connection: round trip, delivery rate, segments sent again (TCP_INFO of Linux).

It measures with every acknowledgement of what is sent anyway, so also while tokens stream, when a ping would wait
behind hidden states. The layout is that of `struct tcp_info` in linux/tcp.h, which only ever grows at its end.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

_ESTABLISHED = 1
_HEAD = struct.Struct("=B6xB")
"""State; the last byte's lowest bit says that the sender had no more to send."""
_RTT = struct.Struct("=II")
_RTT_AT = 68
_TOTAL_RESENT = struct.Struct("=I")
_TOTAL_RESENT_AT = 100
_SEGMENTS_OUT_AT = 136
_DELIVERY = struct.Struct("=Q")
_DELIVERY_AT = 160
_READ_BYTES = 256


@dataclass(frozen=True, slots=True)
class TcpState:
    """One connection. A field that this kernel does not tell, or has not measured yet, is None."""

    rtt_ms: float | None
    rtt_deviation_ms: float | None
    delivery_bytes_per_s: float | None
    is_sender_limited: bool
    """The rate is what there was to send, not what the path carries."""
    segments_sent: int | None
    segments_resent: int | None

    @property
    def resent(self) -> float | None:
        """Share of the segments sent that were sent before."""
        if not self.segments_sent or self.segments_resent is None:
            return None
        return min(1.0, self.segments_resent / self.segments_sent)


def parse_tcp_info(data: bytes) -> TcpState | None:
    """The kernel's answer as a TcpState; None for a connection that is not established. Never raises."""
    if len(data) < _HEAD.size:
        return None
    state, flags = _HEAD.unpack_from(data)
    if state != _ESTABLISHED:
        return None
    rtt = _at(_RTT, _RTT_AT, data)
    resent = _at(_TOTAL_RESENT, _TOTAL_RESENT_AT, data)
    segments = _at(_TOTAL_RESENT, _SEGMENTS_OUT_AT, data)
    delivery = _at(_DELIVERY, _DELIVERY_AT, data)
    return TcpState(
        rtt_ms=rtt[0] / 1e3 if rtt and rtt[0] else None,
        rtt_deviation_ms=rtt[1] / 1e3 if rtt and rtt[0] else None,
        delivery_bytes_per_s=float(delivery[0]) if delivery and delivery[0] else None,
        is_sender_limited=bool(flags & 1),
        segments_sent=segments[0] if segments else None,
        segments_resent=resent[0] if resent else None,
    )


def read_tcp_state(descriptor: int) -> TcpState | None:
    """Of a socket that is somebody else's; None where it is gone, no TCP connection, or the system is not Linux."""
    option = getattr(socket, "TCP_INFO", None)
    if option is None or descriptor < 0:
        return None
    try:
        borrowed = socket.socket(fileno=descriptor)
    except OSError:
        return None
    try:
        return parse_tcp_info(borrowed.getsockopt(socket.IPPROTO_TCP, option, _READ_BYTES))
    except OSError:
        return None
    finally:
        # Closing it is its owner's: a copy of the descriptor would keep a connection open that its owner closed.
        borrowed.detach()


def _at(form: struct.Struct, offset: int, data: bytes) -> tuple[int, ...] | None:
    """The numbers at an offset, None where an older kernel's answer ends before."""
    return form.unpack_from(data, offset) if offset + form.size <= len(data) else None
