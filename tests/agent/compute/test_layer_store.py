from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.compute.layer_store import LayerStore
from agent.compute.part import PartKey

KEY = PartKey("0" * 64, "int4", 32, "fp32")
ARRAYS: dict[str, NDArray[Any]] = {
    "a.q": np.arange(256, dtype=np.uint8).reshape(4, 64),
    "a.s": np.ones((4, 1), np.float32),
}


def test_what_was_written_is_found(tmp_path: Path) -> None:
    store = LayerStore(tmp_path, 1 << 20)
    assert store.find(KEY, "layer-000") is None
    written = store.write(KEY, "layer-000", ARRAYS)
    found = LayerStore(tmp_path, 1 << 20).find(KEY, "layer-000")
    assert written is not None
    assert found is not None
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found.array(name), array)
    assert store.find(KEY, "layer-001") is None
