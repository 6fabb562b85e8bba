"""Cards of policies: what goes out comes back, and nothing else comes in."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl.policy_card import BadPolicy, Feature, dump_card, parse_card
from tests.fakes.small_policy import small_card


def test_round_trip() -> None:
    card = small_card(quality='{"a": 1}', steps=240_000, seed=3, trained_on="table")
    text = dump_card(card)
    assert parse_card(text) == card
    assert dump_card(parse_card(text)) == text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"splits": ()}, "splits is empty"),
        ({"splits": (4, 2)}, "not ascending"),
        ({"splits": (2, 2)}, "not ascending"),
        ({"splits": (0, 2)}, "1 to 31 are possible"),
        ({"splits": (2, 32)}, "1 to 31 are possible"),
        ({"num_layers": 1}, "num_layers is 1"),
        ({"num_layers": 10**9}, "num_layers"),
        ({"moves": ()}, "moves is empty"),
        ({"moves": (0, 0)}, "not distinct"),
        ({"moves": (0, 1 << 60)}, "at most 1024"),
        ({"observation": (Feature("loss", 0.0, 0.3),)}, "must name split"),
        ({"observation": (Feature("split", 2.0, 1.0),)}, r"split goes from 2\.0 to 1\.0"),
        ({"observation": (Feature("split", 0.0, 1e300),)}, r"split goes from 0\.0 to 1e\+300"),
    ],
)
def test_what_no_policy_can_be_is_named(changes: dict[str, Any], said: str) -> None:
    card = small_card(**changes)
    with pytest.raises(BadPolicy, match=said):
        card.checked()
    with pytest.raises(BadPolicy, match=said):
        parse_card(dump_card(card))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "cannot be read"),
        ("[]", "no JSON object"),
        ("{}", "schema is None"),
        ('{"schema": true}', "schema is True"),
        ('{"schema": 1}', "missing required field `model`"),
        ("[" * 5000, "cannot be read"),
        (dump_card(small_card()).replace('"loss"', '"lust"'), r"observation\[0\].name"),
        (dump_card(small_card()).replace("[1,2,4,8,16]", '"1,2"'), "splits"),
        (dump_card(small_card()).replace('"quality":10.0', '"quality":1e999'), "cannot be read"),
    ],
)
def test_a_text_that_is_no_card_is_refused(text: str, said: str) -> None:
    with pytest.raises(BadPolicy, match=said):
        parse_card(text)


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(), st.lists, max_leaves=5))
def test_any_value_in_any_field_is_a_card_or_refused(value: Any) -> None:
    raw = json.loads(dump_card(small_card()))
    for field in raw:
        try:
            parse_card(json.dumps(raw | {field: value}))
        except BadPolicy:
            continue


def test_features_are_seen_from_minus_one_to_one() -> None:
    feature = Feature("loss", 0.1, 0.3)
    assert [feature.scaled(value) for value in (0.1, 0.2, 0.3)] == pytest.approx([-1.0, 0.0, 1.0])
    assert (feature.scaled(-5.0), feature.scaled(9.0)) == (-1.0, 1.0)
    assert Feature("sigma", 5.0, 5.0).scaled(5.0) == 0.0
