from __future__ import annotations

import numpy as np
import pytest

from agent.compute.graph_writer import GraphOptions
from agent.compute.kv_cache import KvLayout
from agent.compute.layer_graph import build_block
from agent.compute.onnx_block import BlockMemory, KvPool, OnnxBlock, OnnxHead, StepBuffers
from agent.compute.onnx_session import SessionSettings, open_session, shared_value
from agent.compute.quantize import make_arrays
from agent.compute.rope import rotation_tables
from planner.types import LayerRange
from tests.fakes.random_weights import SMALL, RandomWeights

LAYOUT = KvLayout.of(SMALL, slots=4, context=15, element_bytes=4)


@pytest.fixture
def block() -> OnnxBlock:
    layers, weights = LayerRange(1, 2), RandomWeights()
    graph = build_block(SMALL, layers, GraphOptions("fp32", 32, "fp16", LAYOUT.capacity))
    session = open_session(graph.model, SessionSettings(1), (make_arrays(w, weights.tensor) for w in graph.weights))
    tables = rotation_tables(SMALL, LAYOUT.capacity)
    shared = {name: shared_value(table, "cpu") for name, table in zip(("cos", "sin"), tables, strict=True)}
    buffers = StepBuffers(LAYOUT.slots, SMALL.hidden_size)
    return OnnxBlock(0, session, graph, BlockMemory(KvPool(layers, LAYOUT, np.float32, "cpu"), shared, buffers))


def test_buffers_take_turns_and_keep_their_place() -> None:
    buffers = StepBuffers(slots=2, hidden_size=8)
    first, second = buffers.views(1, 6)
    assert first.shape == second.shape == (1, 6, 8)
    assert not np.shares_memory(first, second)
    generation = buffers.generation
    smaller = buffers.views(2, 1)
    assert np.shares_memory(smaller[0], first)
    assert buffers.generation == generation
    buffers.views(1, 7)
    assert buffers.generation == generation + 1
    assert buffers.nbytes == 2 * 7 * 8 * 4


def test_keys_land_in_the_rows_slots_and_positions_only(block: OnnxBlock) -> None:
    """past and present are one memory: a run writes its own positions of its own slots and nothing else."""
    memory = block._memory
    keys = memory.pool._memory[0]
    assert isinstance(keys, np.ndarray)
    memory.buffers.seqlens_k[0], memory.buffers.total_len[0] = 2, 3
    memory.buffers.views(1, 3)[0][:] = np.random.default_rng(0).standard_normal((1, 3, SMALL.hidden_size))
    block.run(slot=2, rows=1, tokens=3)
    written = np.abs(keys).max(axis=(1, 3)) > 0
    assert [tuple(place) for place in np.argwhere(written)] == [(2, 0), (2, 1), (2, 2)]
    memory.buffers.seqlens_k[:2], memory.buffers.total_len[0] = (0, 5), 6
    memory.buffers.views(2, 1)[0][:] = 1.0
    block.run(slot=0, rows=2, tokens=1)
    written = np.abs(keys).max(axis=(1, 3)) > 0
    assert [tuple(place) for place in np.argwhere(written)] == [(0, 0), (1, 5), (2, 0), (2, 1), (2, 2)]


def test_bindings_are_made_once(block: OnnxBlock) -> None:
    for _ in range(3):
        for slot, rows, tokens in ((0, 1, 1), (1, 3, 1), (0, 1, 4)):
            block._memory.buffers.seqlens_k[:rows] = tokens - 1
            block._memory.buffers.total_len[0] = tokens
            block._memory.buffers.views(rows, tokens)
            block.run(slot, rows, tokens)
    assert set(block._bindings) == {(0, 1), (1, 3)}


def test_a_pool_takes_what_its_layout_says() -> None:
    pool = KvPool(LayerRange(0, 3), LAYOUT, np.float32, "cpu")
    assert sum(array.nbytes for array in pool._memory if isinstance(array, np.ndarray)) == LAYOUT.layers_bytes(3)


def test_head_gives_fresh_logits() -> None:
    from agent.compute.layer_graph import build_head

    weights = RandomWeights()
    graph = build_head(SMALL, GraphOptions("fp32", 32, "fp16", LAYOUT.capacity))
    arrays = (make_arrays(w, weights.tensor) for w in graph.weights)
    head = OnnxHead(open_session(graph.model, SessionSettings(1), arrays), SMALL.vocab_size)
    hidden = np.random.default_rng(0).standard_normal((3, SMALL.hidden_size), dtype=np.float32)
    first = head.run(hidden)
    kept = first.copy()
    head.run(-hidden)
    np.testing.assert_array_equal(first, kept)
    normed = hidden / np.sqrt((hidden**2).mean(-1, keepdims=True) + SMALL.rms_norm_eps)
    np.testing.assert_allclose(first, normed @ weights.tensor("lm_head.weight").T, rtol=1e-4, atol=1e-5)
