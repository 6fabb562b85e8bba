from __future__ import annotations

import errno
import gc
import os
from pathlib import Path

import numpy as np
import pytest

from agent.compute.graph_writer import WeightRef
from agent.compute.layer_store import LayerStore
from agent.compute.part import EMBEDDING, HEAD, PartKey, parts_of
from agent.compute.weights import Array, StoredWeights, Weights, array_names, make_part, part_weights
from planner.types import LayerRange
from tests.fakes.random_weights import SMALL, RandomWeights

KEY = PartKey("0" * 64, "int4", 32, "fp32")
PARTS = parts_of([LayerRange(0, SMALL.num_layers)], SMALL.num_layers)


class Counting(RandomWeights):
    """How often which weight is made."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[str] = []

    def arrays(self, weight: WeightRef) -> dict[str, Array]:
        self.made.append(weight.name)
        return super().arrays(weight)


def check_all(weights: Weights, key: PartKey = KEY) -> None:
    """Asks for every weight in an executor's order; each must be what the checkpoint gives."""
    for part in PARTS:
        made = make_part(RandomWeights(), key, part)
        for weight in part_weights(SMALL, key, part):
            found = weights.arrays(weight)
            assert found.keys() == array_names(weight)
            for name, array in found.items():
                assert array.dtype == made[name].dtype
                np.testing.assert_array_equal(array, made[name])
    np.testing.assert_array_equal(weights.embedding(), RandomWeights().embedding())


@pytest.mark.parametrize("quantization", ["int4", "int8"])
@pytest.mark.parametrize("compute", ["fp32", "fp16"])
def test_the_second_load_makes_nothing(tmp_path: Path, quantization: str, compute: str) -> None:
    key = PartKey("0" * 64, quantization, 32, compute)  # type: ignore[arg-type]
    store = LayerStore(tmp_path, 1 << 30)
    for expected in (len(PARTS) * 5, 0):
        source = Counting()
        check_all(StoredWeights(source, key, store, PARTS), key)
        assert (len(source.made) > 0) == (expected > 0)
        assert len(source.made) == len(set(source.made)), "once each"


def test_a_part_that_went_is_made_again_and_only_that(tmp_path: Path) -> None:
    store = LayerStore(tmp_path, 1 << 30)
    check_all(StoredWeights(RandomWeights(), KEY, store, PARTS))
    gone = next(tmp_path.glob("*/*/layer-002.safetensors"))
    gone.unlink()
    source = Counting()
    check_all(StoredWeights(source, KEY, store, PARTS))
    assert {name.split(".")[0] for name in source.made} == {"2"}
    assert gone.exists()


def test_a_full_disk_serves_from_memory_and_keeps_one_part_of_it(tmp_path: Path) -> None:
    def write(descriptor: int, data: memoryview) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    weights = StoredWeights(RandomWeights(), KEY, LayerStore(tmp_path, 1 << 30, write), PARTS)
    check_all(weights)
    gc.collect()
    assert not weights._made, "every array was given out; nothing is held twice"


def test_a_small_cache_keeps_what_it_can_and_does_not_churn(tmp_path: Path) -> None:
    probe = LayerStore(tmp_path / "probe", 1 << 30)
    check_all(StoredWeights(RandomWeights(), KEY, probe, PARTS))
    layer_bytes = next(probe.root.glob("*/*/layer-000.safetensors")).stat().st_size
    store = LayerStore(tmp_path / "layers", 2 * layer_bytes + 20_000)
    kept = []
    for _ in range(3):
        check_all(StoredWeights(RandomWeights(), KEY, store, PARTS))
        gc.collect()
        kept.append({path.name for path in store.root.glob("*/*/*.safetensors")})
    assert kept[0] == kept[1] == kept[2]
    assert "layer-000.safetensors" in kept[0], "written first, and in use until the load ended"


def test_parts_hold_every_weight_of_the_model_once() -> None:
    held = [name for part in PARTS for name in make_part(RandomWeights(), KEY, part)]
    assert len(held) == len(set(held))
    assert list(make_part(RandomWeights(), KEY, EMBEDDING)) == ["model.embed_tokens.weight"]
    assert part_weights(SMALL, KEY, HEAD)
    with pytest.raises(ValueError, match="4 layers"):
        make_part(RandomWeights(), KEY, "layer-004")
    with pytest.raises(ValueError, match="no part"):
        make_part(RandomWeights(), KEY, "tail")
