from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.compute import onnx_executor
from agent.compute.executor import IDLE
from agent.compute.onnx_executor import ExecutorSettings, OnnxExecutor
from agent.compute.onnx_session import CUDA, SessionSettings
from agent.errors import BadCheckpoint, ProviderUnavailable
from planner.memory import layer_weight_bytes
from planner.types import LayerRange
from tests.fakes.random_weights import SMALL, RandomWeights

ALL = LayerRange(0, 4)
EACH = (1, 2, 3)
"""Cuts that make every layer a block."""
WEIGHTS = RandomWeights()


def load(**changes: Any) -> OnnxExecutor:
    settings: dict[str, Any] = {"resident": (ALL,), "slots": 3, "context": 20, "quantization": "fp32", "cuts": EACH}
    return OnnxExecutor.load(WEIGHTS, ExecutorSettings(**(settings | changes)))


@pytest.fixture(scope="module")
def executor() -> OnnxExecutor:
    return load()


def hidden(rows: int, tokens: int, scale: float = 1.0) -> Any:
    random = np.random.default_rng(rows * 100 + tokens)
    return random.standard_normal((rows, tokens, SMALL.hidden_size), dtype=np.float32) * np.float32(scale)


def test_embedding_reads_rows(executor: OnnxExecutor) -> None:
    tokens = np.array([[5, 0, 299], [7, 7, 1]])
    table = WEIGHTS.tensor("model.embed_tokens.weight")
    np.testing.assert_array_equal(executor.embed(tokens), table[tokens])


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        (np.array([[300]]), "300 do not lie in 0 to 299"),
        (np.array([[-1]]), "-1 to -1"),
        (np.array([1]), r"expected integers \[n, s\]"),
        (np.zeros((1, 0), np.int64), "expected integers"),
        (np.array([[1.0]]), "float64"),
    ],
)
def test_bad_tokens_are_refused(executor: OnnxExecutor, tokens: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        executor.embed(tokens)


@pytest.mark.parametrize(
    ("layers", "x", "slot", "positions", "text"),
    [
        (LayerRange(0, 5), hidden(1, 2), 0, [0], "not resident"),
        (ALL, hidden(1, 2), 3, [0], "slots 3 to 3"),
        (ALL, hidden(1, 2), -1, [0], "slots -1"),
        (ALL, hidden(2, 1), 2, [0, 0], "slots 2 to 3"),
        (ALL, hidden(1, 2), 0, [-1], "position -1"),
        (ALL, hidden(1, 22), 0, [0], "room for 21"),
        (ALL, hidden(1, 2), 0, [2**40], "position 1099511627776"),
        (ALL, hidden(1, 2), 0, [1], "holds 0 tokens"),
        (ALL, hidden(1, 2), 0, [0, 0], "2 positions for 1 rows"),
        (ALL, hidden(2, 2), 0, [0, 0], "one row or one token per row"),
        (ALL, hidden(1, 1)[:, :0], 0, [0], "1 rows of 0 tokens"),
        (ALL, hidden(1, 1)[..., :5], 0, [0], "expected float32"),
        (ALL, hidden(1, 1).astype(np.float16), 0, [0], "float16"),
        (ALL, hidden(1, 1)[0], 0, [0], "expected float32"),
    ],
)
def test_bad_runs_are_refused(layers: LayerRange, x: Any, slot: int, positions: list[int], text: str) -> None:
    executor = load()
    with pytest.raises(ValueError, match=text):
        executor.forward(layers, x, slot, positions)
    # Nothing was computed: the slot still holds nothing.
    with pytest.raises(ValueError, match="holds 0 tokens"):
        executor.forward(ALL, hidden(1, 1), 0, [1])


@given(data=st.data())
def test_any_order_of_runs_gives_what_a_fresh_slot_gives(executor: OnnxExecutor, data: st.DataObject) -> None:
    """Prefill, chunks, rewinds and other rows in between leave a row what its own tokens make it."""
    prompt = hidden(1, 20)
    reference = load_once().forward(ALL, prompt, 0, [0]).copy()
    held = 0
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, held))
        stop = data.draw(st.integers(start + 1, 20))
        executor.forward(ALL, hidden(1, 3, 2.0), data.draw(st.sampled_from([0, 2])), [0])
        if stop - start == 1 and start == 0:
            continue
        out = executor.forward(ALL, prompt[:, start:stop], 1, [start])
        np.testing.assert_allclose(out, reference[:, start:stop], rtol=0, atol=2e-2 * np.abs(reference).max())
        held = stop


def test_result_of_a_chain_of_ranges_is_that_of_the_whole(executor: OnnxExecutor) -> None:
    x = hidden(1, 7)
    whole = executor.forward(ALL, x, 0, [0]).copy()
    first = executor.forward(LayerRange(0, 3), x, 1, [0]).copy()
    np.testing.assert_array_equal(executor.forward(LayerRange(3, 4), first, 1, [0]), whole)


def test_input_is_left_alone_and_may_be_the_last_result(executor: OnnxExecutor) -> None:
    x = hidden(1, 4)
    kept = x.copy()
    first = executor.forward(LayerRange(0, 1), x, 0, [0])
    expected = executor.forward(LayerRange(1, 4), first.copy(), 0, [0]).copy()
    first = executor.forward(LayerRange(0, 1), x, 0, [0])
    np.testing.assert_array_equal(executor.forward(LayerRange(1, 4), first, 0, [0]), expected)
    np.testing.assert_array_equal(x, kept)


def test_saturation_is_counted_the_same_in_blocks_of_any_size() -> None:
    outputs, counts = [], []
    for cuts in (EACH, (), (2,)):
        executor = load(cuts=cuts)
        outputs.append(executor.forward(ALL, hidden(1, 5, 3e4), 0, [0]).copy())
        counts.append(executor.saturated())
    assert counts[0] > 0
    assert counts == [counts[0]] * 3
    np.testing.assert_array_equal(outputs[1], outputs[0])
    np.testing.assert_array_equal(outputs[2], outputs[0])
    assert np.abs(outputs[0]).max() == 65504


def test_nan_travels_through_any_cut() -> None:
    """A broken value must show in the logits, not turn into the largest number."""
    x = hidden(1, 3)
    x[0, 1, 0] = np.nan
    for cuts in (EACH, ()):
        assert np.isnan(load(cuts=cuts).forward(ALL, x, 0, [0])[0, 1]).all()


def test_a_dummy_at_the_capacitys_last_position_is_allowed(executor: OnnxExecutor) -> None:
    executor.forward(ALL, hidden(1, 20), 0, [0])
    executor.forward(ALL, hidden(1, 1), 0, [20])
    with pytest.raises(ValueError, match="room for 21"):
        executor.forward(ALL, hidden(1, 1), 0, [21])


def test_partial_residence() -> None:
    middle = load(resident=(LayerRange(1, 2), LayerRange(3, 4)))
    assert middle.blocks == (LayerRange(1, 2), LayerRange(3, 4))
    with pytest.raises(ValueError, match="layer 0 is not resident"):
        middle.embed(np.array([[1]]))
    with pytest.raises(ValueError, match=r"\[1, 4\) are not resident"):
        middle.forward(LayerRange(1, 4), hidden(1, 2), 0, [0])
    x = middle.forward(LayerRange(3, 4), hidden(1, 2), 0, [0])
    assert middle.logits(x[0]).shape == (2, 300)
    with pytest.raises(ValueError, match="layer 3 is not resident"):
        load(resident=(LayerRange(0, 2),)).logits(x[0])


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"resident": ()}, "no layers"),
        ({"resident": (LayerRange(0, 5),)}, "end by 4"),
        ({"resident": (LayerRange(0, 2), LayerRange(1, 3))}, "not overlap"),
        ({"quantization": "fp16"}, "choose fp32, int8 or int4"),
        ({"context": 300}, "longer than the model's 256"),
        ({"slots": 0}, "slots is 0"),
    ],
)
def test_bad_settings_are_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        load(**changes)


def test_wrong_tensors_and_providers_are_refused() -> None:
    class Narrow(RandomWeights):
        def tensor(self, name: str) -> Any:
            return super().tensor(name)[..., :-1]

    settings = ExecutorSettings((ALL,), 1, 20)
    with pytest.raises(BadCheckpoint, match="input_layernorm"):
        OnnxExecutor.load(Narrow(), settings)
    with pytest.raises(ProviderUnavailable):
        OnnxExecutor.load(WEIGHTS, dataclasses.replace(settings, session=SessionSettings(1, (CUDA,))))


@pytest.mark.parametrize(("most", "blocks"), [(1, [1] * 7), (2, [1, 2, 2, 2]), (3, [2, 2, 3]), (6, [3, 4]), (9, [7])])
def test_default_blocks_are_even_and_bounded(most: int, blocks: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    spec = dataclasses.replace(SMALL, num_layers=8, sliding_windows=(None,) * 8)
    monkeypatch.setattr(onnx_executor, "BLOCK_BYTES", most * layer_weight_bytes(spec, "fp32", 32))
    settings = ExecutorSettings((LayerRange(1, 8),), 1, 20, "fp32", 32)
    assert [len(block) for block in OnnxExecutor.load(RandomWeights(spec), settings).blocks] == blocks


def test_blocks_between_cuts_are_even_and_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = dataclasses.replace(SMALL, num_layers=8, sliding_windows=(None,) * 8)
    monkeypatch.setattr(onnx_executor, "BLOCK_BYTES", 2 * layer_weight_bytes(spec, "fp32", 32))
    settings = ExecutorSettings((LayerRange(0, 8),), 1, 20, "fp32", 32, cuts=(3,))
    blocks = OnnxExecutor.load(RandomWeights(spec), settings).blocks
    assert [(block.start, block.stop) for block in blocks] == [(0, 1), (1, 3), (3, 4), (4, 6), (6, 8)]


@pytest.mark.parametrize("quantization", ["fp32", "int8"])
def test_layers_change_hands_bit_by_bit(quantization: str) -> None:
    """A chunk and tokens, cut at 2, then 3, then 1: what comes out is what one executor gives."""
    whole = load(quantization=quantization, cuts=())
    source = load(quantization=quantization, resident=(LayerRange(0, 3),), cuts=(1, 2))
    edge = load(quantization=quantization, resident=(LayerRange(1, 4),), cuts=(2, 3))
    position, before = 0, 2
    for tokens, split in ((6, 2), (1, 2), (1, 3), (1, 3), (1, 1), (3, 1), (1, 3)):
        changed = LayerRange(min(before, split), max(before, split)) if before != split else None
        if changed is not None:
            giver, taker = (edge, source) if split > before else (source, edge)
            taker.write_kv(changed, 1, 0, giver.read_kv(changed, 1, 0, position))
        before = split
        x = hidden(1, tokens)
        expected = whole.forward(ALL, x, 1, [position]).copy()
        middle = source.forward(LayerRange(0, split), x, 1, [position])
        np.testing.assert_array_equal(edge.forward(LayerRange(split, 4), middle, 1, [position]), expected)
        position += tokens


def test_keys_and_values_that_do_not_fit_are_refused() -> None:
    one = load()
    one.forward(ALL, hidden(1, 5), 1, [0])
    values = one.read_kv(LayerRange(1, 3), 1, 0, 5)
    assert values.shape == (2, 2, SMALL.num_kv_heads, 5, SMALL.head_dim)
    assert np.abs(values).sum(axis=(1, 2, 4)).all()
    reads = [((0, 5), 1, 0, 5), ((0, 4), 1, 0, 6), ((0, 4), 0, 0, 1), ((0, 4), 3, 0, 1), ((0, 4), 1, 3, 3)]
    for (start, stop), slot, first, last in reads:
        with pytest.raises(ValueError, match="keys and values"):
            one.read_kv(LayerRange(start, stop), slot, first, last)
    before = one.read_kv(ALL, 1, 0, 5)
    for slot, first, wrong in [(1, 6, values), (1, 18, values), (1, 0, values[:1]), (1, 0, values.astype(np.float16))]:
        with pytest.raises(ValueError, match="keys and values"):
            one.write_kv(LayerRange(1, 3), slot, first, wrong)
    np.testing.assert_array_equal(one.read_kv(ALL, 1, 0, 5), before)
    one.write_kv(LayerRange(1, 3), 2, 0, values)
    np.testing.assert_array_equal(one.read_kv(LayerRange(1, 3), 2, 0, 5), values)
    with pytest.raises(ValueError, match="holds 0 tokens"):
        one.forward(ALL, hidden(1, 1), 2, [5])


def test_an_idle_slot_stays_as_it_is() -> None:
    one, other = load(), load()
    for slot in range(3):
        one.forward(ALL, hidden(1, 4 + slot), slot, [0])
        other.forward(ALL, hidden(1, 4 + slot), slot, [0])
    before = one.read_kv(ALL, 1, 0, 5)
    x = hidden(3, 1)
    around = one.forward(ALL, x, 0, [4, IDLE, 6]).copy()
    for slot, position in ((0, 4), (2, 6)):
        np.testing.assert_array_equal(other.forward(ALL, x[slot : slot + 1], slot, [position])[0], around[slot])
    np.testing.assert_array_equal(one.read_kv(ALL, 1, 0, 5), before)
    with pytest.raises(ValueError, match="hold 5"):
        one.read_kv(ALL, 1, 0, 6)


def test_progress_counts_layers() -> None:
    seen: list[tuple[int, int]] = []
    settings = ExecutorSettings((LayerRange(0, 1), LayerRange(2, 4)), 1, 20, cuts=())
    OnnxExecutor.load(WEIGHTS, settings, lambda done, total: seen.append((done, total)))
    assert seen == [(0, 3), (1, 3), (3, 3)]


@pytest.mark.parametrize("quantization", ["fp32", "int8", "int4"])
def test_memory_is_what_the_planner_counts(quantization: str) -> None:
    """Anonymous memory of a fresh process: loading adds what the formula says, and closing gives it back."""
    code = f"""
import dataclasses, gc
from agent.compute.onnx_executor import *
from planner.memory import memory_breakdown
from tests.fakes.random_weights import SMALL, RandomWeights
spec = dataclasses.replace(SMALL, num_layers=7, hidden_size=1024, intermediate_size=2816, num_heads=16, head_dim=64,
    num_kv_heads=4, vocab_size=8192, sliding_windows=(None,) * 7)
def anonymous():
    gc.collect()
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("RssAnon"))
warm = ExecutorSettings((LayerRange(0, 1),), 4, 256, {quantization!r}, 32)
OnnxExecutor.load(RandomWeights(), dataclasses.replace(warm, context=16)).close()
before = anonymous()
# Layer 0 stays out: the embedding of a real checkpoint is mapped, not read.
executor = OnnxExecutor.load(RandomWeights(spec), dataclasses.replace(warm, resident=(LayerRange(1, 7),)))
loaded = anonymous() - before
parts = memory_breakdown(spec, LayerRange(1, 7), quantization={quantization!r}, block_size=32, slots=4, context=256)
executor.close()
print(loaded, parts.layers + parts.head + parts.kv, parts.total, anonymous() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded, weights_and_kv, total, kept = map(int, done.stdout.split())
    assert 0.9 * weights_and_kv <= loaded <= total
    assert kept <= 0.05 * loaded


def load_once(cache: list[OnnxExecutor] = []) -> OnnxExecutor:  # noqa: B006  (the cache is the point)
    if not cache:
        cache.append(load())
    return cache[0]
