"""Who may speak for a device: the first message of an agent, judged before anything of it is used. Pure.

The coordinator and `edgectl profile` both admit agents; they do it alike.
"""

from __future__ import annotations

from agent.wire.messages import PROTOCOL_VERSION, Hello, Rejected, WorkerHello


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
