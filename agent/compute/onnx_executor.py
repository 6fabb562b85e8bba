"""The Executor that computes layers with ONNX Runtime.

Owns sessions, KV pools and buffers of one model on one device. Everything that comes from outside is checked here
before ONNX Runtime sees it. See ARCHITECTURE.md for blocks, slots and the boundary type.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from agent.compute.executor import IDLE, KvArray
from agent.compute.graph_writer import CPU_FEATURES, CUDA_FEATURES, GraphOptions, ProviderFeatures
from agent.compute.kernels import round_to_boundary
from agent.compute.kv_cache import KvLayout
from agent.compute.layer_graph import BlockGraph, build_block, build_head
from agent.compute.mapped_weights import refer_to_files
from agent.compute.onnx_block import BlockMemory, KvPool, OnnxBlock, OnnxHead, StepBuffers
from agent.compute.onnx_session import (
    TENSORRT,
    SessionSettings,
    open_session,
    release_freed_memory,
    require_offered,
    shared_value,
)
from agent.compute.provider_probe import require_share, window_excess
from agent.compute.rope import rotation_tables
from agent.compute.row_probe import needs_pairs
from agent.compute.weights import Weights
from agent.errors import BadCheckpoint
from planner.memory import layer_weight_bytes
from planner.model_spec import ModelSpec
from planner.types import BoundaryType, LayerRange, Quantization

Float32 = NDArray[np.float32]
BLOCK_BYTES = 768 << 20
"""Most weights of a block on the CPU. Every run wakes its session's threads: with a block per layer of a 1.1 B model a
token takes 10 % longer. But while a block loads, its weights are in memory twice. This many are 20 ms of work."""

Progress = Callable[[int, int], None]
"""Called with (layers done, layers in all) while weights are read."""


@dataclass(frozen=True, slots=True)
class ExecutorSettings:
    """What an executor is loaded with."""

    resident: tuple[LayerRange, ...]
    slots: int
    context: int
    quantization: Quantization = "int4"
    block_size: int = 128
    boundary: BoundaryType = "fp16"
    session: SessionSettings = field(default_factory=lambda: SessionSettings(threads=1))
    cuts: tuple[int, ...] | None = None
    """Layers at which blocks have to begin. Between them they are even, of at most `BLOCK_BYTES`, on the CPU."""


def _no_progress(done: int, total: int) -> None:
    """The default of `OnnxExecutor.load`."""


@dataclass(frozen=True, slots=True)
class _Parts:
    """What a loaded executor owns."""

    blocks: list[OnnxBlock]
    head: OnnxHead | None
    embedding: NDArray[Any] | None
    buffers: StepBuffers


class OnnxExecutor:
    """Satisfies `agent.compute.executor.Executor`; made by `load`."""

    def __init__(self, spec: ModelSpec, settings: ExecutorSettings, parts: _Parts) -> None:
        self.spec = spec
        self.resident = settings.resident
        self.slots = settings.slots
        self.context = settings.context
        self.boundary: BoundaryType = settings.boundary
        self.blocks = tuple(block.layers for block in parts.blocks)
        """Layer ranges of the blocks in order: `forward` takes any run of them."""
        self._blocks = parts.blocks
        self._head = parts.head
        self._embedding = parts.embedding
        self._buffers = parts.buffers
        self.kv_type: Literal["fp32", "fp16"] = "fp32" if settings.session.on_cpu else "fp16"
        self._held = np.zeros((spec.num_layers, settings.slots), np.int64)
        """Tokens of each slot in each layer."""
        self._paths: dict[LayerRange, tuple[int, int]] = {}
        self._saturated = 0

    @classmethod
    def load(cls, weights: Weights, settings: ExecutorSettings, progress: Progress = _no_progress) -> OnnxExecutor:
        """Read the resident layers, and embedding and head with the first and last layer.

        Raises ValueError for settings that contradict the model, BadCheckpoint for missing or misshapen tensors,
        ProviderUnavailable when the provider does not start or TensorRT takes too few nodes.
        """
        spec, session = weights.spec, settings.session
        require_offered(session)
        features = CPU_FEATURES if session.on_cpu else CUDA_FEATURES
        if any(spec.sliding_windows):
            features = replace(features, window_excess=window_excess(session, half=not session.on_cpu))
        _check_settings(spec, settings, features)
        element, device = (np.float32, "cpu") if session.on_cpu else (np.float16, "cuda")
        layout = KvLayout.of(spec, settings.slots, settings.context, element(0).nbytes)
        options = GraphOptions(settings.quantization, settings.block_size, settings.boundary, layout.capacity, features)
        # With one slot there is never a second row, and a lone row would take a quarter longer (docs/log.md).
        if session.on_cpu and settings.slots > 1 and needs_pairs(session, options):
            features = replace(features, pairs=True)
            options = replace(options, features=features)
        tables = {
            name: shared_value(table.astype(element), device)
            for name, table in zip(("cos", "sin"), rotation_tables(spec, layout.capacity), strict=True)
        }
        ranges = _cut(spec, settings)
        total, done = sum(map(len, ranges)), 0
        sessions = []
        progress(done, total)
        for number, layers in enumerate(ranges):
            graph = build_block(spec, layers, options)
            if number == 0 and session.provider == TENSORRT:
                require_share(graph.model, session, list(_arrays(graph, weights)))
            opened = _open(graph, session, weights)
            release_freed_memory()
            sessions.append((opened, graph))
            done += len(layers)
            progress(done, total)
        head, embedding = None, None
        if settings.resident[-1].stop == spec.num_layers:
            graph = build_head(spec, options)
            head = OnnxHead(_open(graph, session, weights), spec.vocab_size, pairs=features.pairs)
            release_freed_memory()
        if settings.resident[0].start == 0:
            embedding = weights.embedding()
            if embedding.shape != (spec.vocab_size, spec.hidden_size):
                raise BadCheckpoint(f"model.embed_tokens.weight: {embedding.shape} differs from config.json")
        # Pools come last: until then their memory is room for the weights that are there twice while a block loads.
        residuals = max(len(graph.residuals) for _, graph in sessions)
        buffers = StepBuffers(settings.slots, spec.hidden_size, residuals, pairs=features.pairs)
        blocks = [
            OnnxBlock(number, opened, graph, BlockMemory(KvPool(layers, layout, element, device), tables, buffers))
            for number, (layers, (opened, graph)) in enumerate(zip(ranges, sessions, strict=True))
        ]
        return cls(spec, settings, _Parts(blocks, head, embedding, buffers))

    def embed(self, tokens: NDArray[np.int64]) -> Float32:
        """Token ids [n, s] to fresh hidden states [n, s, H]; raises ValueError for an id outside the vocabulary."""
        if self._embedding is None:
            raise ValueError(f"embedding: layer 0 is not resident here, {_listed(self.resident)} are")
        if tokens.ndim != 2 or tokens.size == 0 or not np.issubdtype(tokens.dtype, np.integer):
            raise ValueError(f"embedding: tokens are {tokens.dtype} {tokens.shape}, expected integers [n, s]")
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= self.spec.vocab_size:
            raise ValueError(f"embedding: token ids {low} to {high} do not lie in 0 to {self.spec.vocab_size - 1}")
        return self._embedding[tokens].astype(np.float32, copy=False)

    def forward(self, layers: LayerRange, hidden: Float32, slot: int, positions: Sequence[int]) -> Float32:
        """See `Executor.forward`; a position beyond what a slot holds is refused as well."""
        first, last = self._path(layers)
        rows, tokens = self._checked(hidden, layers, slot, positions)
        if IDLE in positions:
            return self._forward_around(layers, hidden, slot, positions)
        buffers = self._buffers
        # Attention takes a chunk in tiles, and a last tile of one token adds up otherwise than it would within a larger
        # one. A dummy behind the chunk, which the next run overwrites, makes that impossible: tiles are even.
        run_tokens = tokens + 1 if tokens > 1 and tokens % 2 and positions[0] + tokens <= self.context else tokens
        views = buffers.views(rows, run_tokens)
        for row, position in enumerate(positions):
            buffers.seqlens_k[row] = position + run_tokens - 1
        buffers.total_len[0] = max(positions) + run_tokens
        blocks = self._blocks[first:last]
        buffers.put(hidden, blocks[0].source, run_tokens)
        self._held[layers.start : layers.stop, slot : slot + rows] = [position + tokens for position in positions]
        for block in blocks:
            self._saturated += block.run(slot, rows, run_tokens)
            self._saturated += round_to_boundary(views[1 - block.source], self.boundary)
        return views[1 - blocks[-1].source][:rows, :tokens]

    def _forward_around(self, layers: LayerRange, hidden: Float32, slot: int, positions: Sequence[int]) -> Float32:
        """A run with slots in it that must stay as they are: one after the other of its parts between them."""
        result = np.zeros_like(hidden)
        for first, last in runs_between(positions):
            part = self.forward(layers, hidden[first:last], slot + first, positions[first:last])
            result[first:last] = part
        return result

    def read_kv(self, layers: LayerRange, slot: int, start: int, stop: int) -> KvArray:
        """See `Executor.read_kv`."""
        pools = self._pools(layers, slot, start, stop, stop)
        layout = pools[0].layout
        values = np.empty((len(layers), 2, layout.kv_heads, stop - start, layout.head_dim), pools[0].dtype)
        for layer, pool, into in zip(layers, pools, values, strict=True):
            pool.read(layer, slot, start, stop, into)
        return values

    def write_kv(self, layers: LayerRange, slot: int, start: int, values: KvArray) -> None:
        """See `Executor.write_kv`."""
        stop = start + (values.shape[3] if values.ndim == 5 else 0)
        pools = self._pools(layers, slot, start, stop, start)
        layout = pools[0].layout
        expected = (len(layers), 2, layout.kv_heads, stop - start, layout.head_dim)
        if values.shape != expected or values.dtype != pools[0].dtype:
            raise ValueError(
                f"keys and values are {values.dtype} {values.shape}, expected {np.dtype(pools[0].dtype)} {expected}"
            )
        for layer, pool, part in zip(layers, pools, values, strict=True):
            pool.write(layer, slot, start, part)
        held = self._held[layers.start : layers.stop, slot]
        np.maximum(held, stop, out=held)

    def _pools(self, layers: LayerRange, slot: int, start: int, stop: int, needed: int) -> list[KvPool]:
        """The pool of each layer; ValueError when tokens `start .. stop - 1` of a slot do not lie in one, or one holds
        fewer than `needed`."""
        if not any(resident.covers(layers) for resident in self.resident):
            raise ValueError(f"keys and values of layers {layers}: {_listed(self.resident)} are resident")
        if not 0 <= slot < self.slots or not 0 <= start < stop <= self.context:
            raise ValueError(
                f"keys and values of tokens {start} to {stop - 1} of slot {slot}: there are {self.slots} slots of "
                f"{self.context} tokens"
            )
        held = int(self._held[layers.start : layers.stop, slot].min())
        if needed > held:
            raise ValueError(f"keys and values of {needed} tokens of slot {slot}: layers {layers} hold {held}")
        by_layer = {layer: block.pool for block in self._blocks for layer in block.layers}
        return [by_layer[layer] for layer in layers]

    def logits(self, hidden: Float32) -> Float32:
        """Hidden states [n, H] to fresh logits [n, V]."""
        if self._head is None:
            raise ValueError(f"head: layer {self.spec.num_layers - 1} is not resident here")
        if hidden.ndim != 2 or hidden.shape[0] < 1 or hidden.shape[1] != self.spec.hidden_size:
            raise ValueError(f"head: hidden states are {hidden.shape}, expected [n, {self.spec.hidden_size}]")
        return self._head.run(np.ascontiguousarray(hidden, np.float32))

    def saturated(self) -> int:
        return self._saturated

    def assume_held(self, tokens: int) -> None:
        """Let every slot count as holding `tokens` tokens, of whatever its memory has: for timing, not for text."""
        self._held[:] = min(tokens, self.context)

    def close(self) -> None:
        """Drop every session, pool and buffer."""
        self._blocks.clear()
        self._paths.clear()
        self._head = None
        self._embedding = None
        self._buffers = StepBuffers(self.slots, self.spec.hidden_size)
        release_freed_memory()

    def _path(self, layers: LayerRange) -> tuple[int, int]:
        """Indices of the blocks that make up `layers`."""
        found = self._paths.get(layers)
        if found is not None:
            return found
        starts = {block.layers.start: index for index, block in enumerate(self._blocks)}
        stops = {block.layers.stop: index + 1 for index, block in enumerate(self._blocks)}
        inside = any(resident.covers(layers) for resident in self.resident)
        if not inside or layers.start not in starts or layers.stop not in stops:
            blocks = [block.layers for block in self._blocks]
            raise ValueError(f"layers {layers} are not resident whole blocks; the blocks are {_listed(blocks)}")
        self._paths[layers] = (starts[layers.start], stops[layers.stop])
        return self._paths[layers]

    def _checked(self, hidden: Float32, layers: LayerRange, slot: int, positions: Sequence[int]) -> tuple[int, int]:
        """Rows and tokens of a run that may reach ONNX Runtime; ValueError otherwise."""
        if hidden.ndim != 3 or hidden.shape[2] != self.spec.hidden_size or hidden.dtype != np.float32:
            raise ValueError(
                f"hidden states are {hidden.dtype} {hidden.shape}, expected float32 [n, s, {self.spec.hidden_size}]"
            )
        rows, tokens = hidden.shape[0], hidden.shape[1]
        if rows < 1 or tokens < 1 or (rows > 1 and tokens > 1):
            raise ValueError(f"{rows} rows of {tokens} tokens: a run is one row or one token per row")
        if slot < 0 or slot + rows > self.slots:
            raise ValueError(f"slots {slot} to {slot + rows - 1} do not lie in 0 to {self.slots - 1}")
        if len(positions) != rows:
            raise ValueError(f"{len(positions)} positions for {rows} rows")
        capacity = self.context + 1
        held = self._held[layers.start : layers.stop, slot : slot + rows].min(axis=0).tolist()
        for row, position in enumerate(positions):
            if position == IDLE:
                continue
            if not 0 <= position <= held[row] or position + tokens > capacity:
                raise ValueError(
                    f"slot {slot + row}: {tokens} tokens at position {position}; "
                    f"the slot holds {held[row]} tokens and has room for {capacity}"
                )
        return rows, tokens


def runs_between(positions: Sequence[int]) -> list[tuple[int, int]]:
    """Index ranges without an IDLE slot, the longest there are."""
    edges = [-1, *(index for index, position in enumerate(positions) if position == IDLE), len(positions)]
    return [(before + 1, after) for before, after in pairwise(edges) if before + 1 < after]


def _open(graph: BlockGraph, settings: SessionSettings, weights: Weights) -> Any:
    if not settings.on_cpu:
        return open_session(graph.model, settings, _arrays(graph, weights))
    model, arrays, files_dir = refer_to_files(graph.model, _arrays(graph, weights))
    return open_session(model, settings, [arrays], files_dir=files_dir)


def _arrays(graph: BlockGraph, weights: Weights) -> Iterator[dict[str, NDArray[Any]]]:
    """One weight's arrays after the other."""
    return (weights.arrays(weight) for weight in graph.weights)


def _cut(spec: ModelSpec, settings: ExecutorSettings) -> list[LayerRange]:
    """Blocks of the resident ranges in order: from each cut to the next, on the CPU in even parts if they are large."""
    most_layers = max(1, BLOCK_BYTES // layer_weight_bytes(spec, settings.quantization, settings.block_size))
    blocks: list[LayerRange] = []
    for resident in settings.resident:
        edges = sorted({resident.start, resident.stop, *(cut for cut in settings.cuts or () if cut in resident)})
        for start, stop in pairwise(edges):
            count = -(-(stop - start) // most_layers) if settings.session.on_cpu else 1
            parts = [start + (stop - start) * number // count for number in range(count + 1)]
            blocks += [LayerRange(first, last) for first, last in pairwise(parts)]
    return blocks


def _check_settings(spec: ModelSpec, settings: ExecutorSettings, features: ProviderFeatures) -> None:
    stop = 0
    if not settings.resident:
        raise ValueError("no layers to load")
    for layers in settings.resident:
        if layers.start < stop or layers.stop > spec.num_layers:
            raise ValueError(
                f"resident layers {_listed(settings.resident)} must rise, not overlap, and end by {spec.num_layers}"
            )
        stop = layers.stop
    wide, narrow = ("fp32", "fp16") if features.compute == "fp32" else ("fp16", "fp32")
    if settings.quantization == narrow:
        raise ValueError(f"{narrow} weights do not run on {settings.session.provider}; choose {wide}, int8 or int4")


def _listed(ranges: Sequence[LayerRange]) -> str:
    return ", ".join(map(str, ranges))
