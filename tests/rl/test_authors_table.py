"""The authors' surface: its tabulated points and what is known of its best layers."""

from __future__ import annotations

import numpy as np
import pytest

from rl.arrays import FloatArray
from rl.authors_table import authors_gain


def total(loss: float) -> FloatArray:
    """10 f + (10 - l) / 10 of layers 1 to 10."""
    layers = np.arange(1.0, 11.0)
    gain = authors_gain()(np.full(10, loss), layers, np.zeros(10))
    return 10 * gain + (10 - layers) / 10


@pytest.mark.parametrize(("loss", "best", "reward"), [(0.01, 1, 0.60), (0.10, 1, 0.62), (0.20, 1, 0.65)])
def test_below_a_fifth_the_first_layer_is_best(loss: float, best: int, reward: float) -> None:
    assert int(np.argmax(total(loss))) + 1 == best
    assert total(loss)[best - 1] == pytest.approx(reward)


@pytest.mark.parametrize(("loss", "reward"), [(0.22, 0.66), (0.26, 0.71), (0.30, 0.75)])
def test_above_it_the_seventh_is(loss: float, reward: float) -> None:
    assert total(loss)[6] == pytest.approx(reward)
    assert total(loss)[6] >= total(loss).max() - 1e-9


def test_noise_is_ignored_and_shapes_are_kept() -> None:
    gain = authors_gain()(np.array([0.01, 0.1]), np.array([1.0, 10.0]), np.array([9.0, 9.0]))
    np.testing.assert_allclose(gain, [-0.030, 0.050])
