"""What all control messages are."""

from __future__ import annotations

import msgspec


def _kebab(name: str) -> str:
    return "".join("-" + c.lower() if c.isupper() else c for c in name).lstrip("-")


class Message(msgspec.Struct, frozen=True, tag_field="kind", tag=_kebab):
    """Base of all control messages; the kind is the class name in kebab-case."""
