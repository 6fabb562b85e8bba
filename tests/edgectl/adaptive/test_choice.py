"""What a person may ask of splits that move."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgectl.adaptive.choice import AdaptiveChoice
from edgectl.adaptive.guards import Limits


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(interval_tokens=0), "--decide-every 0 is outside 1 to"),
        (Limits(interval_tokens=1 << 40), "--decide-every"),
        (Limits(dwell_tokens=-1), "--dwell -1 is outside 0 to"),
        (Limits(move_weight=-0.1), "--move-weight -0.1 is outside"),
        (Limits(move_weight=float("nan")), "--move-weight nan is outside"),
        (Limits(move_weight=float("inf")), "--move-weight inf is outside"),
    ],
)
def test_numbers_that_mean_nothing_name_their_flag(limits: Limits, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdaptiveChoice(Path("policy.onnx"), None, limits)


def test_a_decision_for_every_token_and_moves_one_after_the_other_are_possible() -> None:
    assert AdaptiveChoice(Path("p"), None, Limits(1, 0, move_weight=0.0)).limits.dwell_tokens == 0
