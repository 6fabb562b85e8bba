"""A policy whose network was written down, not trained: up where much is lost, down where little is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgectl.planning import ServedModel
from rl.dense import Dense
from rl.export import write_policy
from rl.policy_card import Feature, PolicyCard
from rl.reward import RewardWeights

SPLITS = (4, 8, 16, 24)
UP_FROM_LOSS = 0.1
"""What is lost more often moves the split one place up, what is lost less often one down; a tenth around it nothing."""


def card_for(model: ServedModel, **changes: Any) -> PolicyCard:
    card = PolicyCard(
        model=model.name,
        digest=model.digest,
        num_layers=model.spec.num_layers,
        splits=SPLITS,
        moves=(-1, 0, 1),
        observation=(Feature("loss", 0.0, 2 * UP_FROM_LOSS), Feature("split", SPLITS[0], SPLITS[-1])),
        weights=RewardWeights(),
        learner="hand",
    )
    return replace(card, **changes)


def write_hand_made_policy(path: Path, model: ServedModel, **changes: Any) -> Path:
    """The policy's file for this model, with other fields of its card where they are given."""
    weight = np.array([[-1.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    write_policy(path, [Dense(weight, np.array([0.0, 0.1, 0.0]), "none")], card_for(model, **changes))
    return path
