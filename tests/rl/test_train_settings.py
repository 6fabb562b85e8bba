"""The authors' settings are theirs, and settings that cannot be are refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from rl.train_settings import AUTHORS, AUTHORS_TRUE_PPL, TrainSettings


def test_defaults_are_the_authors() -> None:
    assert (AUTHORS.steps, AUTHORS.rollout, AUTHORS.epochs, AUTHORS.gamma, AUTHORS.clip_range) == (
        *(240_000, 400, 10),
        *(0.99, 0.2),
    )
    assert (AUTHORS_TRUE_PPL.steps, AUTHORS_TRUE_PPL.rollout, AUTHORS_TRUE_PPL.batch_size) == (6_000, 100, 25)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"steps": 0}, "steps 0"),
        ({"learning_rate": -1.0}, "learning rates"),
        ({"learning_rate": float("nan")}, "learning rates"),
        ({"gae_lambda": 1.1}, "gae_lambda 1.1"),
        ({"clip_range": float("nan")}, "clip_range nan"),
        ({"batch_size": 1}, "batch_size 1"),
    ],
)
def test_settings_that_cannot_be_are_named(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TrainSettings(**change)
