from __future__ import annotations

import os
from pathlib import Path

import ml_dtypes
import numpy as np

from agent.compute.layer_file import LayerFile, write_layer_file
from agent.compute.part import PartKey

KEY = PartKey("0" * 64, "int4", 32, "fp32")


def test_arrays_of_every_type_come_back(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    arrays = {
        "q": random.integers(0, 256, (4, 2, 16), np.uint8),
        "s": random.standard_normal((4, 2)).astype(np.float32),
        "half": random.standard_normal(5).astype(np.float16),
        "bf16": random.standard_normal((3, 3)).astype(ml_dtypes.bfloat16),
    }
    path = tmp_path / "part"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    size = write_layer_file(descriptor, KEY, "head", arrays, os.write)
    os.close(descriptor)
    file = LayerFile(path, KEY, "head")
    file.verify()
    assert file.file_bytes == size == path.stat().st_size
    assert set(file.names) == set(arrays)
    for name, array in arrays.items():
        assert file.array(name).dtype == array.dtype
        np.testing.assert_array_equal(file.array(name), array)
