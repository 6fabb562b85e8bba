"""Sampling against a plain oracle that sorts everything, and against the distribution it should have."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from agent.compute.philox import uniform
from agent.compute.sampling import SAMPLING_STREAM, CannotSample, sample
from agent.wire.messages import Sampling

Float32 = NDArray[np.float32]


def adjusted_slowly(logits: Float32, params: Sampling, counts: Mapping[int, int]) -> list[float]:
    """Bias and penalties as OpenAI documents them, token by token."""
    adjusted = []
    for token, logit in enumerate(logits.tolist()):
        bias = sum(value for biased, value in params.logit_bias if biased == token)
        count = counts.get(token, 0)
        penalty = count * params.frequency_penalty + (params.presence_penalty if count > 0 else 0.0)
        adjusted.append(float(np.float32(logit + (bias - penalty))))
    return adjusted


def kept_slowly(adjusted: list[float], params: Sampling) -> list[tuple[int, float]]:
    """Tokens that may be drawn with their probabilities, in the documented order."""
    ordered = sorted(range(len(adjusted)), key=lambda token: (-adjusted[token], token))
    if params.top_k:
        ordered = ordered[: params.top_k]
    highest = adjusted[ordered[0]]
    weights = [math.exp((adjusted[token] - highest) / params.temperature) for token in ordered]
    total = math.fsum(weights)
    if params.top_p < 1:
        length = next(
            (n for n in range(1, len(ordered)) if math.fsum(weights[:n]) >= params.top_p * total), len(ordered)
        )
        ordered, weights = ordered[:length], weights[:length]
    total = math.fsum(weights)
    return [(token, weight / total) for token, weight in zip(ordered, weights, strict=True)]


def drawn_slowly(kept: list[tuple[int, float]], share: float) -> set[int]:
    """The token at `share`; both neighbours when it lies on the edge between them, give or take rounding."""
    answers, reached = set(), 0.0
    for token, probability in kept:
        if reached - 1e-9 <= share <= reached + probability + 1e-9 and probability > 0:
            answers.add(token)
        reached += probability
    return answers


# Steps of 1/4 make many ties; the wide range makes heads that end early and late.
LOGITS = st.lists(st.integers(-60, 60), min_size=1, max_size=40).map(lambda xs: np.array(xs, np.float32) / 4)
PARAMS = st.fixed_dictionaries(
    {
        "seed": st.integers(-(1 << 63), (1 << 63) - 1),
        "temperature": st.sampled_from([0.05, 0.7, 1.0, 2.5, 100.0]),
        "top_p": st.sampled_from([1.0, 0.99, 0.9, 0.5, 0.1, 1e-9]),
        "top_k": st.sampled_from([0, 1, 2, 5, 1000]),
    }
)


@given(logits=LOGITS, fields=PARAMS, position=st.integers(0, 1 << 40))
def test_draws_what_sorting_everything_draws(logits: Float32, fields: dict[str, Any], position: int) -> None:
    params = Sampling(**fields)
    kept = kept_slowly(logits.tolist(), params)
    # With cumulated weights that meet top_p exactly, rounding may keep one token more or less.
    chosen = sample(logits, params, position, {}).token
    answers = drawn_slowly(kept, uniform(params.seed, position, SAMPLING_STREAM))
    if not is_borderline(logits.tolist(), params):
        assert chosen in answers


def is_borderline(adjusted: list[float], params: Sampling) -> bool:
    if params.top_p == 1:
        return False
    everything = kept_slowly(adjusted, Sampling(temperature=params.temperature, top_k=params.top_k))
    sums = np.cumsum([probability for _, probability in everything])
    return bool((np.abs(sums - params.top_p) < 1e-9).any())


@given(
    logits=LOGITS,
    presence=st.sampled_from([-2.0, 0.0, 0.5, 2.0]),
    frequency=st.sampled_from([-1.0, 0.0, 0.3, 2.0]),
    seed=st.integers(0, 100),
    data=st.data(),
)
def test_bias_and_penalties(
    *, logits: Float32, presence: float, frequency: float, seed: int, data: st.DataObject
) -> None:
    tokens = st.integers(0, len(logits) - 1)
    bias = data.draw(st.lists(st.tuples(tokens, st.sampled_from([-100.0, -0.5, 1.25, 100.0])), max_size=4))
    counts = data.draw(st.dictionaries(tokens, st.integers(0, 5), max_size=6))
    params = Sampling(
        seed=seed, presence_penalty=presence, frequency_penalty=frequency, logit_bias=tuple(bias), temperature=0.0
    )
    before = logits.copy()
    expected = adjusted_slowly(logits, params, counts)
    greedy = sample(logits, params, 3, counts).token
    assert greedy == expected.index(max(expected))
    warm = Sampling(seed=seed, presence_penalty=presence, frequency_penalty=frequency, logit_bias=tuple(bias))
    drawn = sample(logits, warm, 3, counts).token
    assert drawn in drawn_slowly(kept_slowly(expected, warm), uniform(seed, 3, SAMPLING_STREAM))
    np.testing.assert_array_equal(logits, before)


@pytest.mark.parametrize(
    "fields",
    [{}, {"temperature": 0.6}, {"top_k": 12}, {"top_p": 0.8}, {"top_k": 30, "top_p": 0.9, "temperature": 1.4}],
    ids=str,
)
def test_draws_have_the_right_distribution(fields: dict[str, Any]) -> None:
    logits = (np.random.default_rng(5).standard_normal(60) * 1.5).astype(np.float32)
    params = Sampling(seed=11, **fields)
    draws = 6000
    seen = Counter(sample(logits, params, position, {}).token for position in range(draws))
    kept = kept_slowly(logits.tolist(), params)
    assert set(seen) <= {token for token, _ in kept}
    chi_square = sum((seen[token] - draws * p) ** 2 / (draws * p) for token, p in kept)
    degrees = len(kept) - 1
    # Wilson and Hilferty's approximation of the 99.99 % point.
    assert chi_square < degrees * (1 - 2 / (9 * degrees) + 3.72 * math.sqrt(2 / (9 * degrees))) ** 3


@pytest.mark.parametrize("spread", [0.01, 1.0, 3.0])
@pytest.mark.parametrize("fields", [{}, {"top_p": 0.6}, {"top_k": 40}, {"temperature": 0.2}], ids=str)
def test_a_large_vocabulary_takes_the_short_way_to_the_same_token(spread: float, fields: dict[str, Any]) -> None:
    logits = (np.random.default_rng(1).standard_normal(5_000) * spread).astype(np.float32)
    params = Sampling(seed=3, **fields)
    kept = kept_slowly(logits.tolist(), params)
    for position in range(6):
        token = sample(logits, params, position, {}).token
        assert token in drawn_slowly(kept, uniform(3, position, SAMPLING_STREAM))


def drawn_by_sorting_everything(logits: Float32, params: Sampling, position: int) -> int:
    """The same sums as `sample` takes, over the whole vocabulary in order: equal to the last bit."""
    order = np.argsort(-logits, kind="stable")
    with np.errstate(over="ignore"):
        weights = np.exp((logits.astype(np.float64) - float(logits.max())) / params.temperature)
    total, cumulated = float(weights.sum()), np.cumsum(weights[order])
    end = float(cumulated[-1])
    if params.top_p < 1:
        total = end = float(cumulated[np.searchsorted(cumulated, min(params.top_p * total, end))])
    share = uniform(params.seed, position, SAMPLING_STREAM)
    place = int(np.searchsorted(cumulated, share * total, side="right"))
    return int(order[min(place, int(np.searchsorted(cumulated, end)))])


@given(
    vocabulary=st.integers(900, 6000),
    spread=st.sampled_from([0.0, 1e-6, 0.05, 0.9, 4.0]),
    shape=st.sampled_from(["smooth", "tied", "masked", "one far below", "one far above"]),
    fields=st.fixed_dictionaries(
        {
            "seed": st.integers(0, 1000),
            "temperature": st.sampled_from([1e-30, 0.05, 0.8, 1.0, 100.0, 1e30]),
            "top_p": st.sampled_from([1.0, math.nextafter(1.0, 0.0), 0.95, 0.5, 1e-9]),
        }
    ),
)
def test_bins_draw_what_sorting_everything_draws(
    vocabulary: int, spread: float, shape: str, fields: dict[str, Any]
) -> None:
    random = np.random.default_rng(vocabulary)
    logits = (random.standard_normal(vocabulary) * spread).astype(np.float32)
    if shape == "tied":
        logits = np.round(logits * 2).astype(np.float32) / np.float32(2)
    elif shape == "masked":
        logits[random.permutation(vocabulary)[: vocabulary // 2]] = -np.inf
    elif shape != "smooth":
        logits[random.integers(vocabulary)] = 1e38 if shape == "one far above" else -1e38
    params = Sampling(**fields)
    for position in range(4):
        assert sample(logits, params, position, {}).token == drawn_by_sorting_everything(logits, params, position)


def test_a_pure_function() -> None:
    logits = np.random.default_rng(2).standard_normal(500).astype(np.float32)
    params = Sampling(seed=9, top_p=0.9, logprobs=True, top_logprobs=3)
    first = [sample(logits, params, position, {}) for position in range(50)]
    # In another order, from memory that is laid out otherwise, and after other calls.
    strided = np.repeat(logits, 2)[::2]
    assert [sample(strided, params, position, {}) for position in reversed(range(50))] == first[::-1]
    other_seed = Sampling(seed=10, top_p=0.9, logprobs=True, top_logprobs=3)
    assert [sample(logits, other_seed, position, {}) for position in range(50)] != first


def test_greedy_takes_the_lowest_id_of_equal_logits() -> None:
    logits = np.array([1.0, 5.0, 5.0, -np.inf], np.float32)
    assert sample(logits, Sampling(temperature=0.0), 0, {}) == (1, None, ())


def test_masked_tokens_are_never_drawn() -> None:
    logits = np.full(1000, -np.inf, np.float32)
    logits[[3, 700]] = 0.5
    for fields in ({}, {"top_k": 900}, {"top_p": 0.999}, {"temperature": 1e9}, {"temperature": 1e-30}):
        drawn = {sample(logits, Sampling(seed=1, **fields), position, {}).token for position in range(64)}
        assert drawn == {3, 700}


def test_sums_in_another_order_do_not_put_top_p_out_of_reach() -> None:
    """The whole is summed by id, the head in falling order: their last bits differ, and top_p here is almost one."""
    for seed in range(20):
        logits = np.random.default_rng(seed).standard_normal(2000).astype(np.float32)
        for temperature in (0.7, 1.0, 3.0):
            params = Sampling(seed=seed, top_p=math.nextafter(1.0, 0.0), temperature=temperature)
            assert 0 <= sample(logits, params, seed, {}).token < 2000


def test_a_tiny_temperature_is_greedy() -> None:
    logits = np.array([1.0, 1.5, 1.25], np.float32)
    assert {sample(logits, Sampling(temperature=1e-300), p, {}).token for p in range(20)} == {1}


@given(logits=LOGITS, top=st.integers(0, 8), data=st.data())
def test_logprobs_are_the_models_own(logits: Float32, top: int, data: st.DataObject) -> None:
    top = min(top, len(logits))
    shaped = Sampling(
        seed=4,
        temperature=data.draw(st.sampled_from([0.0, 0.7])),
        top_k=2,
        logit_bias=((0, -100.0),),
        presence_penalty=1.0,
        logprobs=True,
        top_logprobs=top,
    )
    sampled = sample(logits, shaped, 0, {0: 2})
    plain = logits.astype(np.float64)
    expected = plain - np.logaddexp.reduce(plain)
    assert sampled.logprob == pytest.approx(expected[sampled.token], abs=1e-9)
    ordered = sorted(range(len(plain)), key=lambda token: (-plain[token], token))[:top]
    assert [token for token, _ in sampled.top] == ordered
    assert [value for _, value in sampled.top] == pytest.approx([expected[token] for token in ordered], abs=1e-9)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [[0.0, math.nan, 9.0], [math.inf, 0.0], [-math.inf, -math.inf]])
def test_logits_that_mean_nothing_are_refused(bad: list[float], temperature: float) -> None:
    with pytest.raises(CannotSample, match="logits at position 12: token"):
        sample(np.array(bad, np.float32), Sampling(temperature=temperature), 12, {})


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_p": math.nan}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"top_logprobs": -1}, "top_logprobs"),
        ({"top_logprobs": 5}, "top_logprobs"),
        ({"presence_penalty": math.nan}, "penalty"),
        ({"frequency_penalty": math.inf}, "penalty"),
        ({"logit_bias": ((4, 1.0),)}, "logit_bias"),
        ({"logit_bias": ((-1, 1.0),)}, "logit_bias"),
        ({"logit_bias": ((0, math.nan),)}, "logit_bias"),
    ],
)
def test_parameters_out_of_range_are_named(fields: dict[str, Any], name: str) -> None:
    with pytest.raises(CannotSample, match=name):
        sample(np.zeros(4, np.float32), Sampling(**fields), 0, {})


def test_counts_of_tokens_outside_the_vocabulary_are_refused() -> None:
    with pytest.raises(CannotSample, match="token 4"):
        sample(np.zeros(4, np.float32), Sampling(presence_penalty=1.0), 0, {4: 1})
