"""What a device remembers between runs, and what it does without a calibration."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from agent.compute.calibration import Calibrations, write_calibrations
from agent.compute.damage import damage
from agent.compute.receiver import Receiver
from planner.channel import Channel, ChannelState, Concealment, Protection
from tests.fakes.calibrations import calibration, related_states

SIZE = 64
STATES = related_states(40, SIZE, 5)
KNOWN = calibration(4, SIZE)
DIGEST = "ab" * 32


def channel(concealment: Concealment, protection: Protection = "none") -> Channel:
    return Channel((ChannelState(loss=0.3),), 7, concealment=concealment, protection=protection)


def receiver(path: Path) -> Receiver:
    write_calibrations(path / "c", [KNOWN], "tiny", DIGEST)
    return Receiver(Calibrations(path / "c", DIGEST, SIZE))


@pytest.mark.parametrize("concealment", ["lmmse", "mean", "previous", "rescale"])
@pytest.mark.parametrize("chunk", [1, 7, 40])
def test_runs_and_rows_in_turn_are_as_one(tmp_path: Path, concealment: Concealment, chunk: int) -> None:
    whole = STATES.copy()
    damage(whole, channel(concealment), 4, 10, calibration=KNOWN)
    one, states = receiver(tmp_path), [STATES.copy() for _ in range(2)]
    for start in range(0, 40, chunk):
        for slot, row in enumerate(states):
            one.damage(row[start : start + chunk], channel(concealment), 4, 10 + start, codec="fp16", slot=slot)
    np.testing.assert_array_equal(states[0], whole)
    np.testing.assert_array_equal(states[1], whole)


def test_a_token_of_another_boundary_position_or_slot_is_not_repeated() -> None:
    lost = Channel((ChannelState(loss=1.0),), concealment="previous")
    clean = Channel((ChannelState(),), concealment="previous")
    one = Receiver()
    for layer, position, slot, repeated in ((4, 8, 0, True), (5, 8, 0, False), (4, 9, 0, False), (4, 8, 1, False)):
        one.damage(STATES[:1].copy(), clean, 4, 7, codec="fp16", slot=0)
        values = STATES[1:2].copy()
        one.damage(values, lost, layer, position, codec="fp16", slot=slot)
        np.testing.assert_array_equal(values, STATES[:1] if repeated else 0 * STATES[:1])


def test_without_a_calibration_it_rescales_and_says_so_once(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    expected = STATES.copy()
    damage(expected, channel("rescale"), 6, 0)
    for one in (Receiver(), receiver(tmp_path)):
        with caplog.at_level(logging.WARNING):
            caplog.clear()
            for _ in range(3):
                values = STATES.copy()
                one.damage(values, channel("lmmse", "repeat"), 6, 0, codec="fp16")
                np.testing.assert_array_equal(values, expected)
        assert [record.message for record in caplog.records] == ["not_calibrated"]
        assert caplog.records[0].__dict__["layer"] == 6


def test_a_calibration_that_is_broken_inside_counts_as_none_and_is_named(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """What is wrong in a matrix shows when it is first needed, in the midst of sessions."""
    broken = replace(KNOWN, spread=np.zeros_like(KNOWN.spread))
    write_calibrations(tmp_path / "c", [broken], "tiny", DIGEST)
    one, expected = Receiver(Calibrations(tmp_path / "c", DIGEST, SIZE)), STATES.copy()
    damage(expected, channel("rescale"), 4, 0)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            values = STATES.copy()
            one.damage(values, channel("lmmse"), 4, 0, codec="fp16")
            np.testing.assert_array_equal(values, expected)
    (record,) = caplog.records
    assert "spread.4" in record.__dict__["problem"]
