from __future__ import annotations

from pathlib import Path

import numpy as np

from agent.compute.layer_store import LayerStore
from agent.compute.part import PartKey, parts_of
from agent.compute.weights import StoredWeights, make_part, part_weights
from planner.types import LayerRange
from tests.fakes.random_weights import SMALL, RandomWeights

KEY = PartKey("0" * 64, "int4", 32, "fp32")


def test_stored_weights_give_what_the_checkpoint_gives(tmp_path: Path) -> None:
    store = LayerStore(tmp_path, 1 << 30)
    for _ in range(2):
        weights = StoredWeights(RandomWeights(), KEY, store)
        for part in parts_of([LayerRange(0, SMALL.num_layers)], SMALL.num_layers):
            made = make_part(RandomWeights(), KEY, part)
            for weight in part_weights(SMALL, KEY, part):
                for name, array in weights.arrays(weight).items():
                    np.testing.assert_array_equal(array, made[name])
