"""One safetensors file: its header, checked completely, and its tensors as views over a memory map.

The file comes from outside, so nothing of the header is believed: names, types, shapes and offsets are checked before
a view is made. Format: https://huggingface.co/docs/safetensors (8 bytes header length, JSON header, data).
"""

from __future__ import annotations

import json
import math
import mmap
import os
import stat
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from agent.errors import BadCheckpoint

MAX_HEADER_BYTES = 100_000_000
"""The format's own limit; a header of a model with 10,000 tensors takes about one megabyte."""

MAX_DIMENSIONS = 8
"""Weights have one or two; more than this only makes a shape's product expensive."""

_LENGTH_BYTES = 8

_ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
"""Every type a file may hold. A tensor of a type that is no weight may lie beside those we read."""

_WEIGHT_DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}


class TensorEntry(NamedTuple):
    """Where a tensor lies; offsets are from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class SafetensorsFile:
    """A memory-mapped file. There is nothing to close: the map goes with the last view of it."""

    def __init__(self, path: Path) -> None:
        """Raises BadCheckpoint naming the file, and the tensor where there is one."""
        self.path = path
        self._map = _map(path)
        self.header = _header_bytes(path, self._map)
        self.entries, self.metadata = parse_header(path, self.header, len(self._map))

    @property
    def file_bytes(self) -> int:
        """Size of the whole file."""
        return len(self._map)

    def tensor(self, name: str) -> NDArray[Any]:
        """Read-only view, fp32, fp16 or bf16 (ml_dtypes), maybe unaligned. Raises KeyError for an unknown name."""
        entry = self.entries[name]
        dtype = _WEIGHT_DTYPES.get(entry.dtype)
        if dtype is None:
            raise BadCheckpoint(
                f"{self.path}: tensor {name} is {entry.dtype}; weights must be {', '.join(_WEIGHT_DTYPES)}"
            )
        view: NDArray[Any] = np.ndarray(entry.shape, dtype, buffer=self._map, offset=entry.start)
        return view

    def array(self, name: str) -> NDArray[Any]:
        """As `tensor`, but bytes (U8) as well: what quantized elements lie in."""
        entry = self.entries[name]
        if entry.dtype != "U8":
            return self.tensor(name)
        view: NDArray[Any] = np.ndarray(entry.shape, np.uint8, buffer=self._map, offset=entry.start)
        return view

    def bytes_of(self, name: str) -> memoryview:
        """The bytes of a tensor as they lie in the file."""
        entry = self.entries[name]
        return memoryview(self._map)[entry.start : entry.stop]


def _map(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise BadCheckpoint(f"{path}: not a regular file")
            if status.st_size < _LENGTH_BYTES:
                raise BadCheckpoint(f"{path}: truncated: {status.st_size} bytes hold no safetensors header")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as problem:
        raise BadCheckpoint(f"{path}: cannot be read: {problem.strerror}") from problem


def _header_bytes(path: Path, data: mmap.mmap) -> bytes:
    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    if length > MAX_HEADER_BYTES:
        raise BadCheckpoint(
            f"{path}: header of {length} bytes, at most {MAX_HEADER_BYTES}; is this a safetensors file?"
        )
    if _LENGTH_BYTES + length > len(data):
        raise BadCheckpoint(f"{path}: truncated: header of {length} bytes in a file of {len(data)}")
    return data[_LENGTH_BYTES : _LENGTH_BYTES + length]


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"name {next(name for name in names if names.count(name) > 1)} appears twice")
    return found


def parse_header(path: Path, header: bytes, file_bytes: int) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    """Tensors and metadata by the JSON `header` of the file `path` of `file_bytes`, which need not exist yet.

    Raises BadCheckpoint naming the file, and the tensor where there is one.
    """
    try:
        parsed = json.loads(header, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as problem:
        raise BadCheckpoint(f"{path}: header is no valid JSON: {problem}") from problem
    if not isinstance(parsed, dict):
        raise BadCheckpoint(f"{path}: header is no JSON object")
    data_start = _LENGTH_BYTES + len(header)
    entries: dict[str, TensorEntry] = {}
    noted = parsed.pop("__metadata__", {})
    texts = noted.items() if isinstance(noted, dict) else ()
    metadata = {name: value for name, value in texts if isinstance(value, str)}
    for name, fields in parsed.items():
        try:
            entries[name] = _entry(fields, data_start, file_bytes)
        except ValueError as problem:
            raise BadCheckpoint(f"{path}: tensor {name}: {problem}") from problem
    by_offset = sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop))
    for (name, entry), (following, next_entry) in pairwise(by_offset):
        if next_entry.start < entry.stop:
            raise BadCheckpoint(f"{path}: tensors {name} and {following} overlap")
    return entries, metadata


def _entry(fields: object, data_start: int, file_bytes: int) -> TensorEntry:
    if not isinstance(fields, dict):
        raise ValueError("its header entry is no object")
    dtype, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        raise ValueError(f"unknown dtype {dtype!r}")
    if not _are_sizes(shape) or len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"shape {shape!r} is no list of at most {MAX_DIMENSIONS} sizes")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"data_offsets {offsets!r} are no range")
    start, stop = data_start + offsets[0], data_start + offsets[1]
    if stop > file_bytes:
        raise ValueError(f"ends at byte {stop}, the file has {file_bytes}: truncated, or its header is wrong")
    expected_bytes = math.prod(shape) * _ITEM_BYTES[dtype]
    if stop - start != expected_bytes:
        raise ValueError(f"{stop - start} bytes for shape {shape} of {dtype}, which takes {expected_bytes}")
    return TensorEntry(dtype, tuple(shape), start, stop)


def _are_sizes(values: object) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)
