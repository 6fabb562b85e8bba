from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.workload import Workload


@pytest.mark.parametrize("name", ["block_size", "prompt", "tokens", "sessions", "context", "chunk"])
@pytest.mark.parametrize("value", [0, -1])
def test_sizes_start_at_one(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1, it is {value}"):
        Workload(quantization="int4", **{name: value})  # type: ignore[arg-type]


def test_prompt_and_answer_fit_the_context() -> None:
    Workload(quantization="int4", prompt=32, tokens=96, context=128)
    with pytest.raises(ValueError, match="prompt 33 and tokens 96 exceed the context of 128"):
        Workload(quantization="int4", prompt=33, tokens=96, context=128)


@given(st.integers(1, 1000), st.integers(1, 1000))
def test_the_mean_context_lies_within_the_answer(prompt: int, tokens: int) -> None:
    mean = Workload(quantization="int4", prompt=prompt, tokens=tokens).mean_context
    assert prompt <= mean <= prompt + tokens
