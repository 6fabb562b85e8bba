"""A load from wish to report, over real sockets; and what is assumed where nothing was said."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

from edgectl.load.run import DEFAULT_CONCURRENCY, DEFAULT_SESSIONS, Wish, offer_of, run_load, warm_up_of
from edgectl.load.summary import Outcome
from edgectl.load.target import View
from tests.fakes.fake_engine import FakeEngine, Script
from tests.fakes.http_server import serving

VIEW = View("m", {"plan": {"context": 200}})


def ran_against(engine: FakeEngine, **fields: Any) -> tuple[dict[str, Any], list[Outcome]]:
    async def run() -> tuple[dict[str, Any], list[Outcome]]:
        async with serving(engine) as served:
            return await asyncio.to_thread(run_load, Wish(url=served.url, **fields), {}, 0.0)

    return asyncio.run(run())


def speaking() -> FakeEngine:
    return FakeEngine(lambda opening: Script(tokens=[300 + at for at in range(opening.max_tokens)]))


def test_a_load_of_our_own_server() -> None:
    report, counted = ran_against(speaking(), sessions=20, concurrency=2, prompt_tokens="4", output_tokens="3")
    assert report["sessions"]["completed"] == len(counted) == 18
    assert report["sessions"]["warm_up"] == 2
    assert report["tokens"] == 54
    assert report["model"] == "wiki-32l"
    # The fake engine's status has no plan, and no device counted anything.
    assert report["predicted"] is None
    assert report["stages"] == []


def test_what_is_assumed() -> None:
    offer = offer_of(Wish(url="http://a"), VIEW, ())
    assert (offer.load.concurrency, offer.sessions, offer.load.context) == (DEFAULT_CONCURRENCY, DEFAULT_SESSIONS, 200)
    assert offer.load.keys == 1
    offer = offer_of(Wish(url="http://a", rate_per_s=2.0, seconds=5.0, model="other"), VIEW, ("x", "y"))
    assert (offer.load.concurrency, offer.sessions, offer.seconds, offer.model) == (None, None, 5.0, "other")
    assert offer.load.keys == 2


@pytest.mark.parametrize(("wished", "offered", "warm_up"), [(None, 9, 0), (None, 50, 5), (None, 9999, 20), (7, 5, 4)])
def test_warm_up(wished: int | None, offered: int, warm_up: int) -> None:
    assert warm_up_of(Wish(url="http://a", warm_up=wished), offered) == warm_up


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"prompt_tokens": "150"}, "context has 200"),
        ({"output_tokens": "none"}, "expected N"),
        ({"sessions": 5, "warm_up": 5}, "leave none"),
        ({"seconds": math.nan}, "no time"),
        ({"seconds": math.inf}, "no time"),
        ({"rate_per_s": -1.0}, "not above 0"),
    ],
)
def test_wishes_that_cannot_be(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        offer_of(Wish(url="http://a", **fields), VIEW, ())


@pytest.mark.parametrize("key", ["a b", "a\r\nHost: x", "ä"])
def test_a_key_that_is_no_header(key: str) -> None:
    with pytest.raises(ValueError, match="no header"):
        run_load(Wish(url="http://127.0.0.1:1", api_keys=(key,)), {})
