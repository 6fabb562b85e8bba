"""Which links a quality table is about, and what is said of the others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgectl.adaptive.mismatch import differences
from planner.channel import Channel, ChannelState
from rl.channel import fading_channel, m_walk
from rl.quality import QualityTable
from tests.fakes.small_quality import better_when_deep, small_table

TABLE = small_table(better_when_deep, sigmas=(0.0, 1.0))
LINK = Channel((ChannelState(loss=0.05), ChannelState(loss=0.3, sigma=1.0)))


def changed(table: QualityTable, **changes: object) -> QualityTable:
    return replace(table, records=tuple(replace(each, **changes) for each in table.records))  # type: ignore[arg-type]


def test_a_link_that_was_measured_is_not_spoken_of() -> None:
    assert differences(TABLE, LINK) == []


def test_the_hardest_fading_is_within_a_table_that_ends_at_0_3() -> None:
    """Nakagami's least shape, 0.5, loses 0.3015."""
    rng = np.random.default_rng(0)
    fading = fading_channel(m_walk(0.5, 50, rng, 0.1), 50, rng, sigma=1.0)
    assert max(state.loss for state in fading.states) > 0.3
    assert differences(changed(TABLE, m=1.0), fading) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"granularity": "packet"}, "granularity element (measured) and packet (link)"),
        ({"granularity": "packet", "interleaved": True}, "interleaving none (measured) and packets (link)"),
        ({"concealment": "lmmse"}, "concealment zero (measured) and lmmse (link)"),
        ({"protection": "int8"}, "protection none (measured) and int8 (link)"),
        ({"states": (ChannelState(loss=0.1, m=1.0),)}, "fading none (measured) and drawn gains (link)"),
        ({"states": (ChannelState(loss=0.1, gain=0.7),)}, "fading none (measured) and drawn gains (link)"),
        ({"states": (ChannelState(snr_db=20.0),)}, "noise sigma (measured) and SNR (link)"),
        ({"states": (ChannelState(), ChannelState(sigma=5.0))}, "sigma 0 to 1 (measured) and 0 to 5 (link)"),
        ({"states": (ChannelState(loss=0.5),)}, "loss 0 to 0.3 (measured) and 0.5 (link)"),
    ],
)
def test_each_difference_is_named(changes: dict[str, object], said: str) -> None:
    assert said in differences(TABLE, replace(LINK, **changes))  # type: ignore[arg-type]


def test_interleaving_of_single_elements_is_none() -> None:
    assert differences(TABLE, replace(LINK, interleaved=True)) == []


def test_a_table_with_gains_is_not_about_a_link_without() -> None:
    assert "fading drawn gains (measured) and none (link)" in differences(changed(TABLE, m=1.0), LINK)


def test_lmmse_may_be_the_rescaling_that_was_measured() -> None:
    (said,) = differences(changed(TABLE, mitigation="rescale"), replace(LINK, concealment="lmmse"))
    assert said == "concealment rescale (measured) and lmmse, unless the receiving device has no calibration (link)"
