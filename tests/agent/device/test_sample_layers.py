"""Which layers are loaded to be timed, for every size of model and memory."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.device.sample_layers import STREAMED_BYTES, choose_layers
from agent.errors import OutOfMemory
from planner.memory import layer_weight_bytes, memory_bytes
from planner.model_spec import ModelSpec
from planner.types import LayerRange
from tests.fakes.random_weights import SMALL

MIB = 1 << 20
LLAMA_13B = dataclasses.replace(
    SMALL,
    num_layers=40,
    hidden_size=5120,
    intermediate_size=13824,
    num_heads=40,
    num_kv_heads=40,
    head_dim=128,
    vocab_size=32000,
    max_positions=4096,
    sliding_windows=(None,) * 40,
)
INT4 = {"quantization": "int4", "block_size": 128}
POINTS = {"rows": (1, 2, 4, 8), "contexts": (32, 512), "prompts": (16, 64, 128)}


def needed(spec: ModelSpec, resident: tuple[LayerRange, ...], slots: int, context: int) -> int:
    return sum(memory_bytes(spec, layers, slots=slots, context=context, **INT4) for layers in resident)


def test_a_small_model_is_loaded_whole_in_two_ranges_of_different_length() -> None:
    chosen = choose_layers(SMALL, **INT4, **POINTS, available_bytes=1 << 33)
    assert chosen.loads == ((LayerRange(0, 1), LayerRange(1, 4)),)
    assert (chosen.rows, chosen.slots, chosen.missing) == ((1, 2, 4, 8), 8, {})


def test_contexts_and_prompts_end_where_the_model_does() -> None:
    chosen = choose_layers(SMALL, **INT4, rows=(1,), contexts=(300, 255, 32), prompts=(999,), available_bytes=1 << 33)
    assert (chosen.contexts, chosen.prompts, chosen.context) == ((32, 255), (256,), 256)


def test_of_a_large_model_as_many_layers_as_no_cache_holds() -> None:
    layer = layer_weight_bytes(LLAMA_13B, "int4", 128)
    (resident,) = choose_layers(LLAMA_13B, **INT4, **POINTS, available_bytes=1 << 36).loads
    assert sum(map(len, resident)) * layer >= STREAMED_BYTES
    assert (resident[0].start, resident[-1].stop) == (0, 40)


def test_of_huge_layers_two() -> None:
    (resident,) = choose_layers(LLAMA_13B, quantization="fp32", block_size=128, **POINTS, available_bytes=1 << 36).loads
    assert resident == (LayerRange(0, 1), LayerRange(39, 40))


@given(available_mib=st.integers(1, 4096), rows=st.lists(st.integers(1, 16), min_size=1, max_size=5))
def test_what_is_chosen_fits_or_nothing_does(available_mib: int, rows: list[int]) -> None:
    points = {**POINTS, "rows": tuple(rows)}
    smallest = needed(LLAMA_13B, (LayerRange(0, 1),), min(rows), 513)
    if smallest > available_mib * MIB:
        with pytest.raises(OutOfMemory, match=f"^{-(-(smallest - available_mib * MIB) // MIB)} MiB short"):
            choose_layers(LLAMA_13B, **INT4, **points, available_bytes=available_mib * MIB)
        return
    chosen = choose_layers(LLAMA_13B, **INT4, **points, available_bytes=available_mib * MIB)
    for resident in chosen.loads:
        assert needed(LLAMA_13B, resident, chosen.slots, chosen.context) <= available_mib * MIB
    ends_with_head = chosen.loads[-1][-1].stop == 40
    assert ends_with_head != ("head" in chosen.missing)
    assert (chosen.rows == tuple(sorted(set(rows)))) != ("decode" in chosen.missing)


def test_layers_are_loaded_one_after_another_where_two_do_not_fit() -> None:
    one_with_head = needed(LLAMA_13B, (LayerRange(39, 40),), 1, 129)
    chosen = choose_layers(
        LLAMA_13B, **INT4, rows=(1,), contexts=(32,), prompts=(129,), available_bytes=one_with_head + 10 * MIB
    )
    assert chosen.loads == ((LayerRange(0, 1),), (LayerRange(20, 21),), (LayerRange(39, 40),))
    assert chosen.missing == {}


def test_a_model_of_one_layer() -> None:
    one = dataclasses.replace(SMALL, num_layers=1, sliding_windows=(None,))
    assert choose_layers(one, **INT4, **POINTS, available_bytes=1 << 33).loads == ((LayerRange(0, 1),),)
    with pytest.raises(OutOfMemory, match="to time one layer"):
        choose_layers(one, **INT4, **POINTS, available_bytes=1 << 20)
