"""Channels as data: positions to states, and what is none."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from planner.channel import Channel, ChannelState, erasing


def test_a_state_lasts_for_its_coherence_and_the_trace_begins_again() -> None:
    quiet, loud = ChannelState(), ChannelState(loss=0.3)
    channel = Channel((quiet, loud), coherence_tokens=3)
    assert [channel.state_at(position) is loud for position in range(9)] == [False] * 3 + [True] * 3 + [False] * 3
    assert not channel.is_clean
    assert Channel((quiet, quiet)).is_clean
    assert erasing(0.1, 7).state_at(5) == ChannelState(loss=0.1)


@pytest.mark.parametrize(
    "fields",
    [
        {"loss": -0.1}, {"loss": 1.1}, {"loss": math.nan}, {"sigma": -1.0}, {"sigma": math.inf}, {"gain": -1.0},
        {"gain": math.nan}, {"m": 0.4}, {"m": math.nan}, {"snr_db": math.nan},
    ],
)  # fmt: skip
def test_a_state_that_cannot_be_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields)).split("_")[0].replace("snr", "SNR")):
        ChannelState(**fields)
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"states": [fields]}, type=Channel)


@pytest.mark.parametrize("fields", [{"states": ()}, {"seed": -1}, {"coherence_tokens": 0}, {"packet_bytes": 1}])
def test_a_channel_that_cannot_be_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"channel|seed|coherence|packets"):
        Channel(**{"states": (ChannelState(),), **fields})
