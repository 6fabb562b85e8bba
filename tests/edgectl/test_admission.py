"""Who may speak for a device."""

from __future__ import annotations

import pytest

from agent.wire.messages import PROTOCOL_VERSION, Hello, WorkerHello
from edgectl.admission import displaced, refusal


def hello(device: str = "a", protocol: int = PROTOCOL_VERSION) -> Hello:
    return Hello(protocol, device, "9.9.9", "boot", "tcp://a:1", 100, "cpu")


@pytest.mark.parametrize("first", [hello(), WorkerHello(PROTOCOL_VERSION, "a")])
def test_a_device_of_that_name_and_protocol_is_admitted(first: Hello | WorkerHello) -> None:
    assert refusal("a", first, "1.0.0") is None


@pytest.mark.parametrize("first", [hello("b"), WorkerHello(PROTOCOL_VERSION, "b")])
def test_another_name_than_the_keys_is_refused_naming_both(first: Hello | WorkerHello) -> None:
    refused = refusal("a", first, "1.0.0")
    assert refused is not None
    assert refused.code == "not_authorized"
    assert "belongs to a" in refused.detail
    assert "calls itself b" in refused.detail


def test_another_protocol_is_refused_naming_both_versions() -> None:
    refused = refusal("a", hello(protocol=PROTOCOL_VERSION + 1), "1.0.0")
    assert refused is not None
    assert refused.code == "version_mismatch"
    for part in (f"protocol {PROTOCOL_VERSION + 1} (edgectl 9.9.9)", f"protocol {PROTOCOL_VERSION} (edgectl 1.0.0)"):
        assert part in refused.detail


def test_whose_device_was_taken_over_is_told_that_keys_are_not_shared() -> None:
    refused = displaced("a")
    assert refused.code == "not_authorized"
    assert "every device needs a key of its own" in refused.detail
