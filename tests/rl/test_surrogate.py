"""Surrogates: what they predict, their way through JSON, and the files that are none."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl.arrays import FloatArray
from rl.dense import Dense
from rl.surrogate import BadSurrogate, Form, Scores, Surrogate, dump_surrogate, parse_surrogate

SPLITS = (1, 2, 4)


def linear(form: Form, loss: float, split: float, sigma: float, constant: float) -> Surrogate:
    """Predicts a plane over (loss, split, sigma)."""
    layer = Dense(np.array([[loss, split, sigma]]), np.array([constant]), "none")
    return Surrogate("tiny", "ab" * 32, 8, form, SPLITS, np.zeros(3), np.ones(3), 0.0, 1.0, (layer,), {"r2": 0.5})


def columns(*rows: tuple[float, float, float]) -> tuple[FloatArray, FloatArray, FloatArray]:
    loss, split, sigma = np.array(rows).T
    return loss, split, sigma


def test_a_gain_comes_as_it_was_fitted() -> None:
    surrogate = linear("gain", 1.0, 0.1, -0.5, 0.25)
    np.testing.assert_allclose(surrogate(*columns((0.2, 4, 0.1), (0.0, 1, 0.0))), [0.8, 0.35])
    with pytest.raises(BadSurrogate, match="no perplexities"):
        surrogate.ppl(*columns((0.2, 4, 0.1)))


def test_perplexities_give_the_gain_over_a_split_drawn_evenly() -> None:
    surrogate = linear("log_ppl", 2.0, -0.1, 0.3, math.log(50.0))
    at = (0.1, 2.0, 1.5)
    ppl = [50.0 * math.exp(0.2 - 0.1 * split + 0.45) for split in SPLITS]
    assert surrogate.ppl(*columns(at)) == pytest.approx([ppl[1]])
    assert surrogate(*columns(at)) == pytest.approx([np.mean([(other - ppl[1]) / other for other in ppl])])


def test_a_feature_without_scale_has_no_weight() -> None:
    surrogate = replace(linear("gain", 1.0, 1.0, 1.0, 0.0), scale=np.array([1.0, 1.0, 0.0]))
    np.testing.assert_array_equal(surrogate(*columns((0.1, 2, 0.0))), surrogate(*columns((0.1, 2, 99.0))))


def test_round_trip() -> None:
    surrogate = replace(linear("log_ppl", 2.0, -0.1, 0.3, 1 / 3), centre=np.array([0.1, 1 / 7, 0.0]))
    text = dump_surrogate(surrogate)
    again = parse_surrogate(text)
    at = columns((0.1, 2, 0.5), (0.3, 1, 0.0))
    np.testing.assert_array_equal(again(*at), surrogate(*at))
    assert dump_surrogate(again) == text
    assert again.notes == {"r2": 0.5}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": 2}, "schema is 2"),
        ({"form": "ppl"}, r"\$.form"),
        ({"splits": []}, "splits"),
        ({"splits": [4, 2]}, "not ascending"),
        ({"splits": [1, 9]}, "a model of 8 layers"),
        ({"centre": [0.0]}, "centre"),
        ({"scale": [0.0, 1.0, "x"]}, "scale"),
        ({"target_scale": None}, "target_scale"),
        ({"layers": []}, "layers"),
        ({"layers": [{}]}, r"layers\[0\]"),
        ({"layers": [{"weight": [[1, 1, 1]] * 2, "bias": [0, 0], "activation": "none"}]}, "gives 2 numbers"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_file_that_is_no_surrogate_is_refused(change: dict[str, Any], said: str) -> None:
    raw = json.loads(dump_surrogate(linear("gain", 1.0, 1.0, 1.0, 0.0))) | change
    with pytest.raises(BadSurrogate, match=said):
        parse_surrogate(json.dumps(raw))


@pytest.mark.parametrize("text", ["", "[]", "[" * 5000, '{"schema": NaN}', "\ud800"])
def test_a_text_that_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(BadSurrogate, match="surrogate"):
        parse_surrogate(text)


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(), st.lists, max_leaves=5))
def test_any_value_in_any_field_is_a_surrogate_or_refused(value: Any) -> None:
    raw = json.loads(dump_surrogate(linear("gain", 1.0, 1.0, 1.0, 0.0)))
    for field in raw:
        try:
            parse_surrogate(json.dumps(raw | {field: value}))
        except BadSurrogate:
            continue


def test_another_model_is_refused_by_name() -> None:
    surrogate = linear("gain", 1.0, 1.0, 1.0, 0.0)
    surrogate.check_model("tiny", "", 8)
    with pytest.raises(BadSurrogate, match="fitted to tiny with 8 layers, here 32"):
        surrogate.check_model("other", "", 32)
    with pytest.raises(BadSurrogate, match="here other cdcd"):
        surrogate.check_model("other", "cd" * 32, 8)


def test_scores() -> None:
    measured = np.array([1.0, 2.0, 3.0, 4.0])
    assert Scores.of(measured, measured) == Scores(1.0, 0.0, 0.0, 4)
    assert Scores.of(np.full(4, 2.5), measured) == Scores(0.0, 1.25, 1.0, 4)
    assert math.isnan(Scores.of(np.ones(2), np.ones(2)).r2)
