"""The formula taken apart adds up to the formula."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.memory import memory_breakdown
from planner.model_spec import ModelSpec
from planner.stage_memory import embedding_bytes, stage_memory
from planner.types import LayerRange
from planner.workload import Workload
from tests.fakes.random_profiles import small_spec


def formula(spec: ModelSpec, layers: LayerRange, workload: Workload, slots: int) -> int:
    parts = memory_breakdown(
        spec,
        layers,
        quantization=workload.quantization,
        block_size=workload.block_size,
        slots=slots,
        context=workload.context,
    )
    return parts.total if workload.counts_workspace else parts.layers + parts.head + parts.kv


workloads = st.builds(
    Workload,
    quantization=st.sampled_from(["fp32", "fp16", "int8", "int4"]),
    context=st.integers(128, 2000),
    counts_workspace=st.booleans(),
)


@given(st.data(), st.integers(1, 8), st.integers(1, 9), workloads)
def test_every_range(data: st.DataObject, num_layers: int, slots: int, workload: Workload) -> None:
    start = data.draw(st.integers(0, num_layers - 1))
    layers = LayerRange(start, data.draw(st.integers(start + 1, num_layers)))
    spec = small_spec(num_layers)
    parts = stage_memory(spec, workload, slots)
    assert parts.of(layers, num_layers) == formula(spec, layers, workload, slots)
    assert parts.first == 0
    assert min(parts.layer, parts.last) > 0
    assert parts.stage > 0 if workload.counts_workspace else parts.stage == 0


@pytest.mark.parametrize(("quantization", "bytes_per_element"), [("fp32", 4), ("fp16", 2), ("int4", 2)])
def test_an_embedding_that_counts_goes_with_layer_0(quantization: str, bytes_per_element: int) -> None:
    workload = Workload(quantization=quantization, counts_embedding=True)  # type: ignore[arg-type]
    spec = small_spec()
    parts = stage_memory(spec, workload)
    assert parts.first == embedding_bytes(spec, workload.quantization) == 1000 * 256 * bytes_per_element
    assert parts.of(LayerRange(0, 2), 6) - parts.of(LayerRange(1, 3), 6) == parts.first


def test_sessions_default_to_the_workloads() -> None:
    workload = Workload(quantization="fp32", sessions=3)
    assert stage_memory(small_spec(), workload) == stage_memory(small_spec(), workload, 3)
