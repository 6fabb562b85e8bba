"""Parts: the units in which a model's weights lie in the cache and travel: one layer, the embedding, the head.

Owns their names and the key that tells one rendering of a model from another. Both become names of files and come from
other devices, so both are checked here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import get_args

from planner.types import LayerRange, Quantization

FORMAT_VERSION = 1
"""Of the files. Another version is another directory: nothing reads what it was not written for."""

EMBEDDING, HEAD = "embedding", "head"
COMPUTE_TYPES = ("fp32", "fp16")
MAX_BLOCK_SIZE = 4096

_PART = re.compile(r"layer-([0-9]{3}|[1-9][0-9]{3})|embedding|head")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_LAYER_SOURCE = re.compile(r"model\.layers\.([0-9]{1,4})\.")


@dataclass(frozen=True, slots=True)
class PartKey:
    """Which rendering of which model: parts of one key fit together, parts of two never do."""

    digest: str
    """Of the model directory: `model_digest`."""
    quantization: Quantization
    block_size: int
    """0 for float weights, whatever was asked for: it changes nothing in them."""
    compute: str
    """Type of activations, scales and vectors: fp32 on the CPU, fp16 on a GPU."""

    def __post_init__(self) -> None:
        """Raises ValueError naming the field: a key may come from another device and leads to a directory."""
        if not isinstance(self.digest, str) or not _DIGEST.fullmatch(self.digest):
            raise ValueError(f"digest {self.digest!r} is not 64 hexadecimal digits")
        if self.quantization not in get_args(Quantization):
            raise ValueError(f"quantization {self.quantization!r} is none of {', '.join(get_args(Quantization))}")
        if self.compute not in COMPUTE_TYPES:
            raise ValueError(f"compute {self.compute!r} is none of {', '.join(COMPUTE_TYPES)}")
        if not self.is_quantized:
            object.__setattr__(self, "block_size", 0)
        elif type(self.block_size) is not int or not 1 <= self.block_size <= MAX_BLOCK_SIZE:
            raise ValueError(f"block_size {self.block_size!r} does not lie in 1 to {MAX_BLOCK_SIZE}")

    @property
    def is_quantized(self) -> bool:
        return self.quantization in ("int4", "int8")

    @property
    def directory(self) -> str:
        """Relative path of the parts' directory below a store's root."""
        kind = f"{self.quantization}-{self.block_size}" if self.is_quantized else self.quantization
        return f"{self.digest}/{kind}-{self.compute}-v{FORMAT_VERSION}"

    def __str__(self) -> str:
        """For texts: `model 0123456789ab int4-128-fp32-v1`."""
        return f"model {self.digest[:12]} {self.directory.rpartition('/')[2]}"


def check_part(part: str) -> str:
    """`part` itself. Raises ValueError for what is no name of a part."""
    if not isinstance(part, str) or not _PART.fullmatch(part):
        raise ValueError(f"{part!r} is no part of a model: layer-000 and up, embedding, head")
    return part


def layer_part(layer: int) -> str:
    """Name of the part that holds `layer`."""
    return check_part(f"layer-{layer:03d}")


def layer_of(part: str) -> int | None:
    """The layer of a part, None for embedding and head. Raises ValueError for what is no part."""
    return int(part[len("layer-") :]) if check_part(part).startswith("layer-") else None


def part_of(sources: Iterable[str]) -> str:
    """The part that holds a weight made from the checkpoint tensors `sources`."""
    match = _LAYER_SOURCE.match(next(iter(sources)))
    return layer_part(int(match[1])) if match else HEAD


def parts_of(resident: Iterable[LayerRange], num_layers: int) -> tuple[str, ...]:
    """The parts a device with these layers needs, in the order in which an executor reads them."""
    layers = sorted({layer for held in resident for layer in held})
    parts = [layer_part(layer) for layer in layers]
    parts += [HEAD] if num_layers - 1 in layers else []
    return (*parts, *([EMBEDDING] if 0 in layers else []))
