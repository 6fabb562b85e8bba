from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.compute.kv_cache import KvLayout
from planner.memory import kv_bytes_per_token_layer
from tests.fakes.random_weights import SMALL

sizes = st.integers(1, 50)


@given(slots=sizes, context=sizes, heads=st.integers(1, 8), head_dim=sizes, element=st.sampled_from([2, 4]))
def test_slots_tile_the_pool(slots: int, context: int, heads: int, head_dim: int, element: int) -> None:
    layout = KvLayout(slots, context, heads, head_dim, element)
    offsets = [layout.offset_bytes(slot, 1) for slot in range(slots)]
    assert [*offsets, layout.pool_bytes] == [slot * layout.slot_bytes for slot in range(slots + 1)]
    rows, kv_heads, capacity, dim = layout.shape(slots)
    assert rows * kv_heads * capacity * dim * element == layout.pool_bytes
    assert capacity == context + 1


def test_takes_what_the_planner_counts() -> None:
    layout = KvLayout.of(SMALL, slots=3, context=40, element_bytes=4)
    assert layout.layers_bytes(2) == 2 * 3 * 41 * kv_bytes_per_token_layer(SMALL)


@pytest.mark.parametrize(("slot", "rows"), [(-1, 1), (0, 0), (0, 4), (3, 1), (2, 2)])
def test_slots_outside_the_pool_are_refused(slot: int, rows: int) -> None:
    with pytest.raises(ValueError, match="do not lie in the pool"):
        KvLayout(3, 8, 2, 16, 4).offset_bytes(slot, rows)


def test_sizes_and_context_are_checked() -> None:
    with pytest.raises(ValueError, match="slots is 0"):
        KvLayout(0, 8, 2, 16, 4)
    with pytest.raises(ValueError, match="context 300 is longer than the model's 256"):
        KvLayout.of(SMALL, 1, 300, 4)
