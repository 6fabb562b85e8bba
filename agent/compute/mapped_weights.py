"""Lets ONNX Runtime map weights straight from the files they lie in.

Arrays that are handed over in memory are copied before they are packed; those in a file are packed from its pages,
which then leave the process: half the memory and time (docs/log.md, 2026-11-21, restart).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from onnx import ModelProto

from agent.compute.layer_file import MappedArray, is_mapped

Array = NDArray[Any]


def refer_to_files(
    model: ModelProto, weights: Iterable[Mapping[str, Array]]
) -> tuple[ModelProto, dict[str, Array], Path | None]:
    """A model that names the files of the `weights` which lie in one; the other weights; and the files' directory."""
    arrays = {name: _aligned(array) for part in weights for name, array in part.items()}
    referring = ModelProto()
    referring.CopyFrom(model)
    directory: Path | None = None
    for initializer in referring.graph.initializer:
        array = arrays.get(initializer.name)
        if not isinstance(array, MappedArray) or array.path is None or not is_mapped(initializer.name, array.nbytes):
            continue
        directory = directory or array.path.parent
        if array.path.parent != directory:
            continue
        del arrays[initializer.name]
        del initializer.external_data[:]
        place = {"location": array.path.name, "offset": str(array.start), "length": str(array.nbytes)}
        for key, value in place.items():
            initializer.external_data.add(key=key, value=value)
    return referring, arrays, directory


def _aligned(array: Array) -> Array:
    return array if array.flags.aligned else array.copy()
