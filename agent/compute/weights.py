"""What an executor asks for weights, and the two ways to answer: from a checkpoint's tensors, or from parts on disk.

Parts of a quantized model are written when they are made first, and mapped from then on.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol

from numpy.typing import NDArray

from agent.compute.layer_store import LayerStore
from agent.compute.part import EMBEDDING, PartKey, layer_of, part_of
from agent.compute.read_ahead import Expected, ReadAhead
from planner.model_spec import ModelSpec
from planner.types import LayerRange

if TYPE_CHECKING:
    from agent.compute.graph_writer import WeightRef

Array = NDArray[Any]
EMBEDDING_TENSOR = "model.embed_tokens.weight"


class Weights(Protocol):
    """What the executor asks for; every call may take as long as making or fetching the weight takes."""

    spec: ModelSpec

    def arrays(self, weight: WeightRef) -> dict[str, Array]:
        """The initializers of `weight` by name. Raises BadCheckpoint for missing or misshapen tensors."""

    def embedding(self) -> Array:
        """[vocabulary, H] in any float type. Raises BadCheckpoint when it is missing."""


class MadeFromTensors(ABC):
    """Satisfies Weights for whatever has a model's tensors by their Hugging Face names."""

    spec: ModelSpec

    @abstractmethod
    def tensor(self, name: str) -> Array:
        """The tensor in its own type. Raises BadCheckpoint when there is none."""

    def arrays(self, weight: WeightRef) -> dict[str, Array]:
        """See `Weights.arrays`: made on the spot."""
        from agent.compute.quantize import make_arrays  # loads ONNX Runtime, which a reader of config.json need not

        return make_arrays(weight, self.tensor)

    def embedding(self) -> Array:
        """See `Weights.embedding`."""
        return self.tensor(EMBEDDING_TENSOR)


def part_weights(spec: ModelSpec, key: PartKey, part: str) -> tuple[WeightRef, ...]:
    """The weights in a part; none in the embedding, which is one tensor as it is. Raises ValueError for no part."""
    from agent.compute.graph_writer import CPU_FEATURES, CUDA_FEATURES, GraphOptions
    from agent.compute.layer_graph import build_block, build_head

    features = CPU_FEATURES if key.compute == "fp32" else CUDA_FEATURES
    options = GraphOptions(key.quantization, key.block_size or 1, "fp32", 1, features)
    layer = layer_of(part)
    if layer is not None:
        if layer >= spec.num_layers:
            raise ValueError(f"{part}: the model has {spec.num_layers} layers")
        return build_block(spec, LayerRange(layer, layer + 1), options).weights
    return () if part == EMBEDDING else build_head(spec, options).weights


def make_part(source: Weights, key: PartKey, part: str) -> dict[str, Array]:
    """All arrays of a part, made from a checkpoint. Raises BadCheckpoint, and ValueError for what is no part."""
    if part == EMBEDDING:
        return {EMBEDDING_TENSOR: source.embedding()}
    made: dict[str, Array] = {}
    for weight in part_weights(source.spec, key, part):
        made |= source.arrays(weight)
    return made


class StoredWeights:
    """Satisfies Weights: parts from the store, and what is not there from `source`, to the store.

    A part that cannot be kept is given out from memory. The embedding is read from `source`: it is not quantized.
    """

    def __init__(self, source: Weights, key: PartKey, store: LayerStore, parts: Iterable[str] = ()) -> None:
        """`parts` are those that will be asked for, in order: what is there is read ahead."""
        self.spec = source.spec
        self._source = source
        self._key = key
        self._store = store
        found = {part: store.find(key, part) for part in parts if part != EMBEDDING}
        self._files = {part: file for part, file in found.items() if file is not None}
        """Held, and so locked, that no part written by the same load takes their place."""
        self._ahead = ReadAhead(
            Expected(file.path, file.copied_bytes, file.file_bytes) for file in self._files.values()
        )
        self._made: dict[str, Array] = {}
        """Of the part in work, if it could not be kept: every array is given out once."""

    def arrays(self, weight: WeightRef) -> dict[str, Array]:
        """See `Weights.arrays`."""
        part = part_of(weight.sources)
        file = self._files.get(part) or self._store.find(self._key, part)
        names = array_names(weight)
        if file is None and not names <= self._made.keys():
            self._made = make_part(self._source, self._key, part)
            file = self._store.write(self._key, part, self._made)
        if file is None:
            return {name: self._made.pop(name) for name in sorted(names)}
        self._made = {}
        self._files[part] = file
        self._ahead.reached(file.path)
        return {name: file.array(name) for name in sorted(names)}

    def embedding(self) -> Array:
        """See `Weights.embedding`."""
        return self._source.embedding()


def array_names(weight: WeightRef) -> frozenset[str]:
    """Names of the arrays of a weight."""
    if weight.form != "quantized":
        return frozenset((weight.name,))
    suffixes = ("q", "s") if weight.symmetric else ("q", "s", "z")
    return frozenset(f"{weight.name}.{suffix}" for suffix in suffixes)
