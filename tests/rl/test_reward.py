"""What a split earns."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rl.reward import RewardWeights, split_reward


def test_it_is_the_authors_sum() -> None:
    earned = split_reward(RewardWeights(), np.array([0.05, -0.02]), np.array([10.0, 1.0]), 10.0)
    np.testing.assert_allclose(earned, [0.5, -0.2 + 0.9])


def test_a_weight_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        RewardWeights(load=math.nan)
