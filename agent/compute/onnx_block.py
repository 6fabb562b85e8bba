"""One block in one ONNX Runtime session, with its KV pools bound in place.

A binding holds raw addresses: the KV pools' from the first slot on, for `past` and `present` alike, and those of the
buffers that all blocks of an executor share. It is made once per (slot, rows) and then only the two hidden tensors are
bound again when the number of tokens changes, so a decode step allocates and binds nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from agent.compute.kernels import round_to_boundary
from agent.compute.kv_cache import KvLayout
from agent.compute.layer_graph import BlockGraph
from agent.compute.onnx_session import device_value
from planner.types import LayerRange

if TYPE_CHECKING:
    import onnxruntime as ort  # type: ignore[import-untyped]

Float32 = NDArray[np.float32]


class StepBuffers:
    """Host memory shared by every block: two hidden buffers that take turns, and the lengths of the rows.

    Blocks with an even number read the first buffer and write the second, odd ones the other way round. With `pairs`
    the buffers have a row or a token more where rows times tokens is odd: zeros that nobody reads.
    """

    def __init__(self, slots: int, hidden_size: int, residuals: int = 0, *, pairs: bool = False) -> None:
        """`residuals` is the largest number of residuals that a block gives out for counting."""
        self.hidden_size = hidden_size
        self.pairs = pairs
        self.real = np.zeros(2, np.int64)
        self.pads = np.zeros(6, np.int64)
        self.seqlens_k = np.zeros(slots, np.int32)
        self.total_len = np.zeros(1, np.int32)
        self.saturated = np.zeros(1, np.int32)
        self.tokens = 0
        self.generation = 0
        """Raised when the hidden buffers move: every binding made before is stale."""
        self._flat: tuple[Float32, Float32] = (np.empty(0, np.float32), np.empty(0, np.float32))
        self._residuals = residuals
        self._residual_memory: Float32 = np.empty(0, np.float32)
        self._views: dict[tuple[int, int], tuple[Float32, Float32]] = {}

    def put(self, hidden: Float32, source: int, run_tokens: int) -> None:
        """Copy hidden states [rows, tokens, H] into one of the buffers, for a run of `run_tokens` per row."""
        rows, tokens = hidden.shape[:2]
        view = self.views(rows, run_tokens)[source]
        if self.pairs:
            self.real[:] = rows, run_tokens
            self.pads[3:5] = view.shape[0] - rows, view.shape[1] - run_tokens
        if view.shape[:2] != (rows, tokens):
            view[rows:] = 0.0
            view[:, tokens:] = 0.0
        view[:rows, :tokens] = hidden

    def views(self, rows: int, tokens: int) -> tuple[Float32, Float32]:
        """Both buffers as [rows, tokens, H], or a row or a token more."""
        if self.pairs and rows * tokens % 2:
            rows, tokens = (rows, tokens + 1) if tokens > 1 else (rows + 1, tokens)
        found = self._views.get((rows, tokens))
        if found is not None:
            return found
        if rows * tokens > self.tokens:
            self.tokens = rows * tokens
            size = self.tokens * self.hidden_size
            self._flat = (np.zeros(size, np.float32), np.zeros(size, np.float32))
            self._residual_memory = np.empty(self._residuals * size, np.float32)
            self._views.clear()
            self.generation += 1
        shape = (rows, tokens, self.hidden_size)
        size = rows * tokens * self.hidden_size
        made = (self._flat[0][:size].reshape(shape), self._flat[1][:size].reshape(shape))
        self._views[rows, tokens] = made
        return made

    def residuals(self, count: int, rows: int, tokens: int) -> Float32:
        """Memory of `count` residuals [rows, tokens, H], one behind the other."""
        shape = (count, rows, tokens, self.hidden_size)
        return self._residual_memory[: math.prod(shape)].reshape(shape)

    @property
    def nbytes(self) -> int:
        return self._flat[0].nbytes + self._flat[1].nbytes + self._residual_memory.nbytes


@dataclass(slots=True)
class _Binding:
    io: ort.IOBinding
    tokens: int
    generation: int
    shape: tuple[int, int]
    """Rows and tokens of the hidden buffers."""


class KvPool:
    """Keys and values of some layers, on the host or on a device."""

    def __init__(self, layers: LayerRange, layout: KvLayout, dtype: type[np.floating[Any]], device: str) -> None:
        self.layers = layers
        self.layout = layout
        self.dtype = dtype
        self.device = device
        self._memory: list[Any] = []
        self._addresses: list[tuple[str, str, int]] = []
        for layer in layers:
            for part in "kv":
                address = self._host_pool() if device == "cpu" else self._device_pool()
                self._addresses.append((f"past_{part}.{layer}", f"present_{part}.{layer}", address))

    def _host_pool(self) -> int:
        pool = np.empty(self.layout.shape(self.layout.slots), self.dtype)
        # Written now, so that a pool for which there is no memory fails here and not in the middle of a session.
        pool.fill(0)
        self._memory.append(pool)
        return pool.ctypes.data

    def _device_pool(self) -> int:
        value = device_value(self.layout.shape(self.layout.slots), self.dtype, self.device)
        self._memory.append(value)
        return int(value.data_ptr())

    def read(self, layer: int, slot: int, start: int, stop: int, into: NDArray[Any]) -> None:
        """Copy keys and values of a slot's tokens `start .. stop - 1` into `into` [2, kv heads, tokens, head size]."""
        for part, memory in enumerate(self._of_layer(layer)):
            pool = memory if isinstance(memory, np.ndarray) else memory.numpy()
            into[part] = pool[slot, :, start:stop]

    def write(self, layer: int, slot: int, start: int, values: NDArray[Any]) -> None:
        """Copy keys and values [2, kv heads, tokens, head size] to a slot's tokens from `start` on.

        Memory of a device goes to the host and back as a whole: ONNX Runtime copies no less.
        """
        for part, memory in enumerate(self._of_layer(layer)):
            pool = memory if isinstance(memory, np.ndarray) else memory.numpy()
            pool[slot, :, start : start + values.shape[2]] = values[part]
            if pool is not memory:
                memory.update_inplace(pool)

    def _of_layer(self, layer: int) -> list[Any]:
        """Keys and values of one layer, of all slots."""
        first = 2 * (layer - self.layers.start)
        return self._memory[first : first + 2]

    def bind(self, io: ort.IOBinding, slot: int, rows: int) -> None:
        """Bind the slots `slot .. slot + rows - 1` as past and present of every layer."""
        shape = list(self.layout.shape(rows))
        offset = self.layout.offset_bytes(slot, rows)
        for past, present, address in self._addresses:
            io.bind_input(past, self.device, 0, self.dtype, shape, address + offset)
            io.bind_output(present, self.device, 0, self.dtype, shape, address + offset)


@dataclass(frozen=True, slots=True)
class BlockMemory:
    """What a block's bindings point into; must outlive the block."""

    pool: KvPool
    tables: Mapping[str, ort.OrtValue]
    """Rotation tables `cos` and `sin`, the same for all blocks."""
    buffers: StepBuffers


class OnnxBlock:
    """Runs one block's session over rows of the KV pool."""

    def __init__(self, number: int, session: ort.InferenceSession, graph: BlockGraph, memory: BlockMemory) -> None:
        self.layers = memory.pool.layers
        self.pool = memory.pool
        self.source = number % 2
        """Which of the two hidden buffers this block reads."""
        self._session = session
        self._counts_saturation = graph.counts_saturation
        self._residuals = graph.residuals
        self._memory = memory
        self._bindings: dict[tuple[int, int], _Binding] = {}
        self._copies_inputs = memory.pool.device != "cpu"

    def run(self, slot: int, rows: int, tokens: int) -> int:
        """Compute the block over the hidden buffer; returns how many residual elements its graph clipped.

        Lengths and positions must have been checked: ONNX Runtime before 1.26 does not check them.
        """
        buffers = self._memory.buffers
        binding = self._bindings.get((slot, rows))
        if binding is None:
            binding = _Binding(self._session.io_binding(), 0, 0, (0, 0))
            self._memory.pool.bind(binding.io, slot, rows)
            for name, table in self._memory.tables.items():
                binding.io.bind_ortvalue_input(name, table)
            self._bindings[slot, rows] = binding
        if binding.tokens != tokens or binding.generation != buffers.generation or self._copies_inputs:
            binding.shape = self._bind_buffers(binding.io, rows, tokens)
            binding.tokens, binding.generation = tokens, buffers.generation
        self._session.run_with_iobinding(binding.io)
        if self._residuals:
            # One pass over all residuals: nodes that count cost more than the rounding itself (docs/log.md).
            return round_to_boundary(buffers.residuals(len(self._residuals), *binding.shape), "fp16")
        return int(buffers.saturated[0]) if self._counts_saturation else 0

    def _bind_buffers(self, io: ort.IOBinding, rows: int, tokens: int) -> tuple[int, int]:
        """Bind host memory. A device's session copies its inputs at this moment, so there it is done for each run.

        Returns rows and tokens of the hidden buffers.
        """
        buffers = self._memory.buffers
        views = buffers.views(rows, tokens)
        source, target = views[self.source], views[1 - self.source]
        shape = list(source.shape)
        io.bind_input("hidden", "cpu", 0, np.float32, shape, source.ctypes.data)
        io.bind_input("seqlens_k", "cpu", 0, np.int32, [rows], buffers.seqlens_k.ctypes.data)
        io.bind_input("total_len", "cpu", 0, np.int32, [1], buffers.total_len.ctypes.data)
        io.bind_output("hidden_out", "cpu", 0, np.float32, shape, target.ctypes.data)
        if buffers.pairs:
            io.bind_input("real", "cpu", 0, np.int64, [2], buffers.real.ctypes.data)
            io.bind_input("pads", "cpu", 0, np.int64, [6], buffers.pads.ctypes.data)
        residuals = buffers.residuals(len(self._residuals), *source.shape[:2])
        for name, residual in zip(self._residuals, residuals, strict=True):
            io.bind_output(name, "cpu", 0, np.float32, shape, residual.ctypes.data)
        if self._counts_saturation:
            io.bind_output("saturated", "cpu", 0, np.int32, [1], buffers.saturated.ctypes.data)
        return source.shape[0], source.shape[1]


class OnnxHead:
    """Final norm and output matrix."""

    def __init__(self, session: ort.InferenceSession, vocab_size: int, *, pairs: bool = False) -> None:
        self._session = session
        self._vocab_size = vocab_size
        self._pairs = pairs
        self._bindings: dict[int, tuple[ort.IOBinding, Float32]] = {}
        """By rows: a binding, and the memory from which it reads the hidden states."""

    def run(self, hidden: Float32) -> Float32:
        """Hidden states [n, H] to fresh logits [n, V]."""
        real = hidden.shape[0]
        rows = real + (self._pairs and real % 2)
        if rows not in self._bindings:
            source = np.zeros((rows, hidden.shape[1]), np.float32)
            self._bindings[rows] = (self._session.io_binding(), source)
        io, source = self._bindings[rows]
        source[:real] = hidden
        # A device's session copies its inputs at this moment, so they are bound again each time.
        io.bind_input("hidden", "cpu", 0, np.float32, source.shape, source.ctypes.data)
        logits = np.empty((rows, self._vocab_size), np.float32)
        io.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        self._session.run_with_iobinding(io)
        return logits[:real]
