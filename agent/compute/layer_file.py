"""One part of a model as a file: safetensors whose metadata says what it is a part of, and a sha256 per tensor.

Tensors are what `quantize.make_arrays` gives, so a session takes them from the memory map as they lie. The file has no
bytes beside header and tensors: its size follows from its header, and what is cut off or added shows at once.
"""

from __future__ import annotations

import hashlib
import json
import os
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.compute.part import FORMAT_VERSION, PartKey, check_part
from agent.compute.safetensors_file import SafetensorsFile, TensorEntry, parse_header
from agent.errors import BadCheckpoint

Array = NDArray[Any]
Write = Callable[[int, memoryview], int]
"""`os.write`: a test passes one that runs out of room."""

MAX_HEADER_BYTES = 1 << 20
"""A layer has at most about thirty tensors, each described in 250 bytes."""

ALIGNMENT_BYTES = 64
"""The data begin at a multiple of a cache line, and so does every tensor whose predecessors are multiples."""

LEAST_MAPPED_BYTES = 1 << 20
"""A mapping of its own for less costs more than the copy it saves."""

_FORMAT = f"edgectl part {FORMAT_VERSION}"
_LENGTH_BYTES = 8
_DTYPES = {"uint8": "U8", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@dataclass(frozen=True, slots=True)
class LayerHeader:
    """What the first bytes of a part's file say, checked: enough to fetch the rest from anybody."""

    raw: bytes
    """Length and JSON as they lie at the start of the file."""
    entries: Mapping[str, TensorEntry]
    """By tensor; offsets are from the start of the file."""
    sha256: Mapping[str, str]
    """By tensor, 64 hexadecimal digits."""

    @property
    def file_bytes(self) -> int:
        """Size of the whole file."""
        return max((entry.stop for entry in self.entries.values()), default=len(self.raw))

    @classmethod
    def parse(cls, raw: bytes, key: PartKey, part: str, path: Path) -> LayerHeader:
        """The header `raw` (with its 8 bytes of length) of the file `path`, which need not exist yet.

        Raises BadCheckpoint naming the file for a header that is malformed, of another version or of another part.
        """
        length = int.from_bytes(raw[:_LENGTH_BYTES], "little")
        if length > MAX_HEADER_BYTES or len(raw) != _LENGTH_BYTES + length:
            raise BadCheckpoint(f"{path}: {len(raw)} bytes are no header of a part of a model")
        # What bytes the tensors take is checked against the shapes; how many the file has, by whoever has the file.
        entries, metadata = parse_header(path, raw[_LENGTH_BYTES:], 1 << 62)
        for name, expected in _identity(key, part).items():
            if metadata.get(name) != expected:
                raise BadCheckpoint(f"{path}: {name} is {metadata.get(name)!r}, expected {expected!r}")
        digests = {name: metadata.get(f"sha256 {name}", "") for name in entries}
        stop = len(raw)
        for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
            if len(digests[name]) != 64:
                raise BadCheckpoint(f"{path}: tensor {name} has no sha256")
            if entry.start != stop:
                raise BadCheckpoint(f"{path}: tensor {name} begins at byte {entry.start}, expected {stop}")
            stop = entry.stop
        return cls(bytes(raw), entries, digests)


class MappedArray(np.ndarray[Any, np.dtype[Any]]):
    """A whole tensor of a file as a read-only view that knows where it lies; what is made from it does not."""

    path: Path | None
    start: int
    """Offset from the start of the file."""

    def __array_finalize__(self, parent: object) -> None:
        self.path, self.start = None, 0


def is_mapped(name: str, size_bytes: int) -> bool:
    """Whether a runtime packs this tensor from the pages of its file, which then may go; the others are copied.

    Scales are read where they are at every run, so they must not be pages that can be taken away.
    """
    return size_bytes >= LEAST_MAPPED_BYTES and not name.endswith(".s")


class LayerFile:
    """A whole file of a part, memory-mapped; `open` checks everything but the contents, `verify` those."""

    def __init__(self, path: Path, key: PartKey, part: str) -> None:
        """Raises BadCheckpoint naming the file: cut off, too long, of another part, version or rendering."""
        self.path = path
        self.key = key
        self.part = part
        self._file = SafetensorsFile(path)
        raw = len(self._file.header).to_bytes(_LENGTH_BYTES, "little") + self._file.header
        self.header = LayerHeader.parse(raw, key, part, path)
        self.file_bytes = self._file.file_bytes
        if self.file_bytes != self.header.file_bytes:
            raise BadCheckpoint(f"{path}: {self.file_bytes} bytes, its header says {self.header.file_bytes}")

    @property
    def copied_bytes(self) -> int:
        """Size of the beginning of the file that holds everything which is not mapped."""
        starts = (
            entry.start for name, entry in self.header.entries.items() if is_mapped(name, entry.stop - entry.start)
        )
        return min(starts, default=self.file_bytes)

    def close_with(self, descriptor: int) -> None:
        """Close `descriptor`, which holds a lock on the file, when this object goes."""
        weakref.finalize(self, os.close, descriptor)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.header.entries)

    def array(self, name: str) -> MappedArray:
        """Read-only view of the memory map, maybe unaligned. Raises KeyError for an unknown name."""
        array = self._file.array(name).view(MappedArray)
        array.path, array.start = self.path, self.header.entries[name].start
        return array

    def arrays(self) -> dict[str, Array]:
        """All tensors, in the order in which they lie."""
        return {name: self.array(name) for name in self.names}

    def damaged(self) -> tuple[str, ...]:
        """Tensors whose contents do not have their sha256. Reads the whole file."""
        return tuple(
            name
            for name, digest in self.header.sha256.items()
            if hashlib.sha256(self._file.bytes_of(name)).hexdigest() != digest
        )

    def verify(self) -> None:
        """Raises BadCheckpoint naming the tensors whose contents do not have their sha256."""
        if damaged := self.damaged():
            raise BadCheckpoint(f"{self.path}: contents of {', '.join(damaged)} do not have their sha256")


def write_layer_file(descriptor: int, key: PartKey, part: str, arrays: Mapping[str, Array], write: Write) -> int:
    """Write the file of a part to an open descriptor; returns its size in bytes. Raises OSError."""
    ordered = {name: np.ascontiguousarray(array) for name, array in _file_order(arrays)}
    header = _header(key, part, ordered)
    for data in (memoryview(header), *map(_bytes, ordered.values())):
        written = 0
        while written < len(data):
            written += write(descriptor, data[written:])
    return len(header) + sum(array.nbytes for array in ordered.values())


def file_bytes(arrays: Mapping[str, Array]) -> int:
    """About the size of the file of these arrays: never less."""
    return sum(array.nbytes for array in arrays.values()) + 4096 + 512 * len(arrays)


def _identity(key: PartKey, part: str) -> dict[str, str]:
    """What makes the file of one part differ from that of every other."""
    return {
        "format": _FORMAT,
        "model": key.digest,
        "part": check_part(part),
        "quantization": key.quantization,
        "block_size": str(key.block_size),
        "compute": key.compute,
    }


def _file_order(arrays: Mapping[str, Array]) -> list[tuple[str, Array]]:
    """What is copied first, so that it is read together; then what is packed from where it lies."""
    return sorted(arrays.items(), key=lambda item: (is_mapped(item[0], item[1].nbytes), item[1].nbytes))


def _header(key: PartKey, part: str, arrays: Mapping[str, Array]) -> bytes:
    metadata = _identity(key, part)
    fields: dict[str, object] = {"__metadata__": metadata}
    start = 0
    for name, array in arrays.items():
        metadata[f"sha256 {name}"] = hashlib.sha256(_bytes(array)).hexdigest()
        stop = start + array.nbytes
        fields[name] = {"dtype": _DTYPES[array.dtype.name], "shape": list(array.shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-(_LENGTH_BYTES + len(text)) % ALIGNMENT_BYTES)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def _bytes(array: Array) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def sync_directory(path: Path) -> None:
    """Make a rename in the directory `path` outlast a power failure, where the file system can."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
