from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from agent.compute.graph_writer import CPU_FEATURES, GraphOptions
from agent.compute.kv_cache import KvLayout
from agent.compute.layer_graph import build_block
from agent.compute.onnx_block import BlockMemory, KvPool, OnnxBlock, OnnxHead, StepBuffers
from agent.compute.onnx_session import SessionSettings, open_session, shared_value
from agent.compute.quantize import make_arrays
from agent.compute.rope import rotation_tables
from planner.types import LayerRange, Quantization
from tests.fakes.random_weights import SMALL, RandomWeights

Float32 = NDArray[np.float32]
LAYOUT = KvLayout.of(SMALL, slots=4, context=15, element_bytes=4)


def make_block(quantization: Quantization = "fp32", *, stop: int = 2, pairs: bool = False) -> OnnxBlock:
    layers, weights = LayerRange(1, stop), RandomWeights()
    features = replace(CPU_FEATURES, pairs=pairs)
    graph = build_block(SMALL, layers, GraphOptions(quantization, 32, "fp16", LAYOUT.capacity, features))
    session = open_session(graph.model, SessionSettings(1), (make_arrays(w, weights.tensor) for w in graph.weights))
    tables = rotation_tables(SMALL, LAYOUT.capacity)
    shared = {name: shared_value(table, "cpu") for name, table in zip(("cos", "sin"), tables, strict=True)}
    buffers = StepBuffers(LAYOUT.slots, SMALL.hidden_size, len(graph.residuals), pairs=pairs)
    return OnnxBlock(0, session, graph, BlockMemory(KvPool(layers, LAYOUT, np.float32, "cpu"), shared, buffers))


@pytest.fixture
def block() -> OnnxBlock:
    return make_block()


def run(block: OnnxBlock, hidden: Float32, slot: int, positions: Sequence[int]) -> tuple[Float32, int]:
    """What a block makes of [rows, tokens, H], and how many elements it clipped."""
    buffers, (rows, tokens) = block._memory.buffers, hidden.shape[:2]
    buffers.put(hidden, block.source, tokens)
    lengths = np.array(positions) + tokens
    buffers.seqlens_k[:rows], buffers.total_len[0] = lengths - 1, lengths.max()
    clipped = block.run(slot, rows, tokens)
    return buffers.views(rows, tokens)[1 - block.source][:rows, :tokens].copy(), clipped


@pytest.mark.parametrize("quantization", ["fp32", "int4"])
def test_a_row_or_token_more_for_the_matrices_changes_nothing(quantization: Quantization) -> None:
    """In blocks of 32 every row's bits are its own, so pairs must give what single rows give; the last slot is full."""
    plain, paired = (make_block(quantization, stop=4, pairs=pairs) for pairs in (False, True))
    random = np.random.default_rng(3)
    positions = [0, 0, 0, 0]
    for slot, rows, tokens in ((0, 1, 5), (1, 1, 2), (2, 1, 3), (3, 1, 15), (0, 1, 1), (0, 3, 1), (1, 3, 1), (2, 1, 7)):
        hidden = random.standard_normal((rows, tokens, SMALL.hidden_size), dtype=np.float32)
        hidden[0, 0, 0] = 1e6  # clipped in every layer, once
        starts = positions[slot : slot + rows]
        (expected, clipped), (found, also_clipped) = (run(one, hidden, slot, starts) for one in (plain, paired))
        np.testing.assert_array_equal(found, expected)
        assert clipped == also_clipped > 0
        for row in range(slot, slot + rows):
            positions[row] += tokens
    pools = (plain._memory.pool._memory, paired._memory.pool._memory)
    for expected_pool, found_pool in zip(*pools, strict=True):
        np.testing.assert_array_equal(np.asarray(found_pool), np.asarray(expected_pool))


def test_buffers_of_pairs_hold_an_even_number_of_rows() -> None:
    buffers = StepBuffers(slots=4, hidden_size=8, pairs=True)
    shapes = {(1, 1): (2, 1), (3, 1): (4, 1), (2, 1): (2, 1), (1, 5): (1, 6), (1, 6): (1, 6)}
    assert {asked: buffers.views(*asked)[0].shape[:2] for asked in shapes} == shapes
    for view in buffers.views(3, 1):
        view.fill(np.nan)
    buffers.put(np.ones((3, 1, 8), np.float32), 0, 1)
    np.testing.assert_array_equal(buffers.views(3, 1)[0][:, 0, 0], [1, 1, 1, 0])
    assert (buffers.real.tolist(), buffers.pads.tolist()) == ([3, 1], [0, 0, 0, 1, 0, 0])
    buffers.put(np.ones((1, 5, 8), np.float32), 1, 6)
    np.testing.assert_array_equal(buffers.views(1, 6)[1][0, :, 0], [1, 1, 1, 1, 1, 0])
    assert (buffers.real.tolist(), buffers.pads.tolist()) == ([1, 6], [0, 0, 0, 0, 0, 0])


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


@pytest.mark.parametrize("pairs", [False, True])
def test_head_gives_fresh_logits(pairs: bool) -> None:
    from agent.compute.layer_graph import build_head

    weights = RandomWeights()
    graph = build_head(SMALL, GraphOptions("fp32", 32, "fp16", LAYOUT.capacity))
    arrays = (make_arrays(w, weights.tensor) for w in graph.weights)
    head = OnnxHead(open_session(graph.model, SessionSettings(1), arrays), SMALL.vocab_size, pairs=pairs)
    hidden = np.random.default_rng(0).standard_normal((3, SMALL.hidden_size), dtype=np.float32)
    first = head.run(hidden)
    kept = first.copy()
    head.run(-hidden)
    np.testing.assert_array_equal(first, kept)
    normed = hidden / np.sqrt((hidden**2).mean(-1, keepdims=True) + SMALL.rms_norm_eps)
    np.testing.assert_allclose(first, normed @ weights.tensor("lm_head.weight").T, rtol=1e-4, atol=1e-5)
