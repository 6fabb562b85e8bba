"""Loads: lengths, arrivals and sessions are drawn from what was asked for, and from the seed alone."""

from __future__ import annotations

import math
import random
from itertools import islice, pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgectl.load.generator import LOWEST_ID, MOST_TOKENS, Lengths, Load, arrivals_s, order_of


def load(**fields: Any) -> Load:
    given_fields = {"prompt": Lengths.parse("8"), "output": Lengths.parse("4"), "context": 64, "concurrency": 1}
    if "rate_per_s" in fields:
        given_fields["concurrency"] = None
    return Load(**{**given_fields, **fields})


@pytest.mark.parametrize("text", ["128", "uniform:16:256", "uniform:5:5", "lognormal:128:0.5"])
def test_lengths_are_written_as_they_are_read(text: str) -> None:
    assert str(Lengths.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "0",
            "-1",
            "1.5",
            "x",
            "uniform",
            "uniform:1",
            "uniform:9:3",
            "uniform:0:3",
            "uniform:1:2:3",
            "normal:1:2",
        ),
        *("lognormal:0:1", "lognormal:8:0", "lognormal:8:-1", "lognormal:8:nan", "lognormal:8:99"),
        str(MOST_TOKENS + 1),
    ],
)
def test_other_lengths_are_refused_with_the_way_out(text: str) -> None:
    with pytest.raises(ValueError, match="lognormal:MEDIAN:SIGMA"):
        Lengths.parse(text)


@given(st.integers(1, 500), st.integers(0, 500), st.integers(1, 800), st.integers(0, 99))
def test_lengths_stay_in_their_range_and_room(low: int, more: int, room: int, seed: int) -> None:
    chance = random.Random(seed)
    assert Lengths("fixed", low, low).draw(chance, room) == min(low, room)
    drawn = Lengths("uniform", low, low + more).draw(chance, room)
    assert min(low, room) <= drawn <= min(low + more, room)
    assert 1 <= Lengths("lognormal", low, MOST_TOKENS, 2.0).draw(chance, room) <= room


def test_distributions_are_those_that_were_named() -> None:
    chance = random.Random(1)
    uniform = [Lengths.parse("uniform:10:20").draw(chance, 1000) for _ in range(5000)]
    assert set(uniform) == set(range(10, 21))
    assert np.mean(uniform) == pytest.approx(15, abs=0.2)
    logs = np.log([Lengths.parse("lognormal:200:0.5").draw(chance, MOST_TOKENS) for _ in range(5000)])
    assert np.median(logs) == pytest.approx(math.log(200), abs=0.03)
    assert np.std(logs) == pytest.approx(0.5, abs=0.02)


@given(st.integers(0, 2**40), st.integers(0, 10_000))
def test_a_session_depends_on_seed_and_number_alone(seed: int, number: int) -> None:
    lengths = {"prompt": Lengths.parse("lognormal:8:1.5"), "output": Lengths.parse("uniform:2:9"), "seed": seed}
    here = order_of(load(**lengths, cancel_share=0.5), number)
    there = order_of(load(**lengths, cancel_share=0.5, rate_per_s=3.0), number)
    assert here == there
    assert len(here.prompt) + here.max_tokens <= 64
    assert all(LOWEST_ID <= token < 1000 for token in here.prompt)
    assert here.hang_up_after is None or 1 <= here.hang_up_after < here.max_tokens


def test_seeds_and_numbers_make_different_sessions() -> None:
    prompts = {order_of(load(seed=seed), number).prompt for seed in range(10) for number in range(10)}
    assert len(prompts) == 100


def test_the_share_that_hangs_up_and_the_keys_in_turn() -> None:
    orders = [order_of(load(cancel_share=0.25, keys=3), number) for number in range(2000)]
    assert sum(order.hang_up_after is not None for order in orders) / 2000 == pytest.approx(0.25, abs=0.03)
    assert [order.key for order in orders[:6]] == [0, 1, 2, 0, 1, 2]
    # An answer of one token is over before anybody could leave it.
    alone = load(cancel_share=1.0, output=Lengths.parse("1"))
    assert order_of(alone, 0).hang_up_after is None


def test_poisson_arrivals_have_exponential_gaps() -> None:
    moments = list(islice(arrivals_s(load(rate_per_s=4.0, seed=3)), 8001))
    gaps = np.array([later - earlier for earlier, later in pairwise(moments)])
    assert moments[0] == 0.0
    assert gaps.mean() == pytest.approx(1 / 4, rel=0.03)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.03)
    # No memory: of the gaps longer than t, as many are longer than 2t.
    assert (gaps > 0.5).mean() == pytest.approx((gaps > 0.25).mean() ** 2, abs=0.02)
    assert moments == list(islice(arrivals_s(load(rate_per_s=4.0, seed=3)), 8001))
    assert moments[1:] != list(islice(arrivals_s(load(rate_per_s=4.0, seed=4)), 8001))[1:]


def test_constant_arrivals() -> None:
    assert list(islice(arrivals_s(load(rate_per_s=2.0, arrivals="constant")), 4)) == [0.0, 0.5, 1.0, 1.5]
    with pytest.raises(ValueError, match="closed loop"):
        next(arrivals_s(load()))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"concurrency": None}, "either a rate"),
        ({"rate_per_s": 1.0, "concurrency": 1}, "either a rate"),
        ({"rate_per_s": 0.0}, "not above 0"),
        ({"rate_per_s": math.inf}, "not above 0"),
        ({"rate_per_s": math.nan}, "not above 0"),
        ({"concurrency": 0}, "at least 1"),
        ({"cancel_share": 1.5}, "outside 0 to 1"),
        ({"vocabulary": LOWEST_ID}, "not above"),
        ({"context": 11}, "12 positions, and the context has 11"),
    ],
)
def test_impossible_loads(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load(**fields)
