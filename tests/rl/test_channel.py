"""The radio channel against scipy's distributions."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from rl.channel import loss_probability, nakagami_gain


@pytest.mark.parametrize(("m", "omega"), [(0.5, 1.0), (1.0, 2.0), (2.3, 0.5), (3.0, 1.0)])
def test_gains_are_nakagami(m: float, omega: float) -> None:
    gains = nakagami_gain(m, omega, 20_000, np.random.default_rng(1))
    assert stats.kstest(gains, stats.nakagami(m, scale=np.sqrt(omega)).cdf).pvalue > 0.01
    assert np.mean(gains**2) == pytest.approx(omega, rel=0.05)


def test_loss_is_the_chance_of_a_gain_below_the_threshold() -> None:
    for m in (0.5, 1.0, 1.5, 2.0, 3.0):
        assert loss_probability(m, 0.15, 1.3) == pytest.approx(stats.nakagami(m, scale=1.3**0.5).cdf(0.15**0.5))
    np.testing.assert_allclose(loss_probability([0.5, 1, 1.5, 2, 3]), [0.30, 0.139, 0.070, 0.037, 0.011], atol=2e-3)


@pytest.mark.parametrize("m", [0.4, -1.0, np.nan, np.inf])
def test_no_nakagami_has_such_an_m(m: float) -> None:
    with pytest.raises(ValueError, match=r"0\.5 or more"):
        loss_probability(m)
