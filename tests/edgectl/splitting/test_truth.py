"""Measured rewards: one perplexity per element, each with a seed of its own, on the scale of the table's gains."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest

from edgectl.splitting.truth import MeasuredGain, shape_of_loss
from planner.channel import Channel
from rl.channel import LEAST_M, loss_probability
from tests.fakes.canned_evidence import table


class TableMeter:
    """Measures what the table says, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, Channel]] = []

    def at(self, split: int, channel: Channel) -> float:
        self.asked.append((split, channel))
        state = channel.states[0]
        return float(table().ppl(state.loss, split, state.sigma))


def test_a_meter_that_measures_the_table_gives_its_gains() -> None:
    meter = TableMeter()
    measured = MeasuredGain(cast(Any, meter), 512, table())
    loss, split, sigma = np.array([0.1, 0.3]), np.array([10.0, 31.0]), np.array([0.0, 2.0])
    assert measured(loss, split, sigma) == pytest.approx(table().gain(loss, split, sigma))
    measured(loss, split, sigma)
    assert measured.evaluations == len(meter.asked) == 4
    assert [asked for asked, _ in meter.asked] == [10, 31, 10, 31]
    assert len({channel.seed for _, channel in meter.asked}) == 4
    assert len(meter.asked[0][1].states) == 512
    assert {state.sigma for state in meter.asked[1][1].states} == {2.0}
    assert measured.seconds > 0.0


def test_shapes_of_losses() -> None:
    for loss in (0.02, 0.1, 0.3):
        assert float(loss_probability(shape_of_loss(loss))) == pytest.approx(loss, rel=1e-6)
    assert shape_of_loss(0.9) == pytest.approx(LEAST_M)
    assert shape_of_loss(0.0) > 3.0
