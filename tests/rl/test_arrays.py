"""The array types that rl's modules agree on."""

from __future__ import annotations

from typing import get_args

import numpy as np

from rl import arrays


def test_numbers_are_of_64_bits() -> None:
    kinds = [get_args(get_args(alias)[-1])[0] for alias in (arrays.FloatArray, arrays.IntArray, arrays.BoolArray)]
    assert kinds == [np.float64, np.int64, np.bool_]
