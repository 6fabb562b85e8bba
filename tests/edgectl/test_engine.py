"""What every Engine owes its caller, held against the fake; cluster tests hold it against the real one."""

from __future__ import annotations

import asyncio

import pytest

from agent.wire.messages import Sampling
from edgectl.engine import Engine, EngineError, Generation
from tests.fakes.fake_engine import FakeEngine, Script


async def opened(engine: Engine, max_tokens: int = 9, stop_ids: tuple[int, ...] = ()) -> Generation:
    return await engine.open((5, 6), max_tokens, Sampling(), stop_ids)


def test_tokens_come_in_index_order_and_then_a_reason() -> None:
    async def scenario() -> None:
        generation = await opened(FakeEngine(lambda _: Script((7, 8, 9))))
        assert generation.reason is None
        events = [event async for event in generation]
        assert [(event.index, event.token) for event in events] == [(0, 7), (1, 8), (2, 9)]
        assert generation.reason == "stop"

    asyncio.run(scenario())


def test_a_stop_id_and_max_tokens_end_it() -> None:
    async def scenario() -> None:
        engine = FakeEngine(lambda _: Script((7, 8, 9)))
        stopped, cut = await opened(engine, stop_ids=(8,)), await opened(engine, max_tokens=2)
        assert [event.token async for event in stopped] == [7]
        assert [event.token async for event in cut] == [7, 8]
        assert (stopped.reason, cut.reason) == ("stop", "length")

    asyncio.run(scenario())


def test_cancelling_ends_an_iteration_under_way_and_may_be_repeated() -> None:
    async def scenario() -> None:
        generation = await opened(FakeEngine(lambda _: Script((7, 8, 9), hold_after=1)))
        seen = []
        async for event in generation:
            seen.append(event.token)
            generation.cancel()
            generation.cancel()
        assert seen == [7]
        assert generation.reason == "cancelled"

    asyncio.run(scenario())


def test_failures_carry_a_code_and_keep_the_detail_apart() -> None:
    error = EngineError("device_lost", "jetson-2 is silent", retry_after_s=3.0)
    assert (error.code, error.detail, error.retry_after_s) == ("device_lost", "jetson-2 is silent", 3.0)
    with pytest.raises(EngineError, match="device_lost: jetson-2"):
        raise error
