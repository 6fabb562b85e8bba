"""Who may speak for a device: the first message of an agent, judged before anything of it is used. Pure.

The coordinator, `edgectl profile` and a quality grid all admit agents; they do it alike.
"""

from __future__ import annotations

from typing import NamedTuple

from agent.wire.messages import PROTOCOL_VERSION, CoordinatorAlive, Hello, Rejected, Welcome, WorkerHello
from edgectl.devices import DeviceRecord, DeviceTable
from edgectl.effects import Notice, Send


def refusal(device: str, first: Hello | WorkerHello, version: str) -> Rejected | None:
    """Why the agent whose key belongs to `device` is not admitted; None when it is. `version` is edgectl's."""
    if first.device != device:
        detail = f"the key belongs to {device}, the agent calls itself {first.device}; set `name` in agent.toml"
        return Rejected("not_authorized", detail)
    if first.protocol != PROTOCOL_VERSION:
        agent = f" (edgectl {first.agent_version})" if isinstance(first, Hello) else ""
        return Rejected(
            "version_mismatch",
            f"{device} speaks protocol {first.protocol}{agent}, "
            f"the coordinator protocol {PROTOCOL_VERSION} (edgectl {version})",
        )
    return None


def displaced(device: str) -> Rejected:
    """For an agent whose device a newer connection has taken over."""
    detail = f"another agent with the key of {device} has connected since; every device needs a key of its own"
    return Rejected("not_authorized", detail)


class Greeting(NamedTuple):
    """What whoever measures says to an agent's first message."""

    effects: tuple[Send | Notice, ...]
    refused: str = ""
    """Why the agent is not admitted; "" when it is."""
    is_anew: bool = False
    """It is another worker than before: whatever the device was asked to do is forgotten there."""


def greet(
    table: DeviceTable, origin: bytes, record: DeviceRecord, first: Hello | WorkerHello, *, version: str, now: float
) -> Greeting:
    """Admits an agent that is to measure, and keeps its connection in the table."""
    refused = refusal(record.name, first, version)
    if refused is not None:
        notice = Notice("error", f"{record.name} was refused: {refused.detail}")
        return Greeting((Send(origin, refused), notice), refused.detail)
    if isinstance(first, WorkerHello):
        return Greeting((Send(origin, CoordinatorAlive()),))
    welcome = Send(origin, Welcome(first.protocol, version, table.peers_of(record.name)))
    if record.is_present and record.is_same_worker(first.worker):
        table.reconnected(origin, first, record.name, now)
        return Greeting((welcome,))
    table.hello(origin, first, record.name, now)
    return Greeting((welcome,), is_anew=True)
