"""Policies small enough to be written by hand: networks of known answers, and a card to go with them."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from rl.dense import Dense
from rl.policy_card import Feature, PolicyCard
from rl.reward import RewardWeights

SPLITS = (1, 2, 4, 8, 16)
MOVES = (0, -1, 1)


def small_card(**changes: object) -> PolicyCard:
    """Of a model of 32 layers; it sees loss and split."""
    fields: dict[str, object] = {
        "model": "tiny",
        "digest": "ab" * 32,
        "num_layers": 32,
        "splits": SPLITS,
        "moves": MOVES,
        "observation": (Feature("loss", 0.0, 0.3), Feature("split", 1.0, 16.0)),
        "weights": RewardWeights(),
        "learner": "PPO",
    }
    return PolicyCard(**(fields | changes))  # type: ignore[arg-type]


def deeper_when_lossy() -> list[Dense]:
    """Scores (0, -loss, loss) of the scaled loss: up above the middle of its range, down below it."""
    weight = np.asarray([[0.0, 0.0], [-1.0, 0.0], [1.0, 0.0]], np.float32)
    return [Dense(weight, np.zeros(3, np.float32), "none")]


def random_network(sizes: list[int], seed: int) -> list[Dense]:
    """Layers of these sizes, tanh between them."""
    rng = np.random.default_rng(seed)
    layers = []
    for index, (wide, out) in enumerate(pairwise(sizes)):
        last = index == len(sizes) - 2
        weight = rng.normal(size=(out, wide)).astype(np.float32)
        layers.append(Dense(weight, rng.normal(size=out).astype(np.float32), "none" if last else "tanh"))
    return layers
