"""The engine of one process: it keeps the Engine's contract, and its tokens do not depend on how it was driven."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.errors import ModelMismatch
from agent.wire.messages import Sampling
from edgectl.engine import EngineError
from edgectl.model_source import describe_model, locate_model
from edgectl.planning import ServedModel, ServingOptions
from edgectl.solo import DEVICE, SoloEngine, SoloSession, load_solo
from tests.fakes.fake_engine import MODEL_DIR

PROMPT = (4, 8, 15, 16, 23, 42)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SoloEngine]:
    located = locate_model(str(MODEL_DIR))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        model = describe_model(located)
        engine = load_solo(located, model, ServingOptions(context=96), lambda done, total: None)
    yield engine
    engine.close()


@pytest.fixture
def engine(loaded: SoloEngine) -> SoloEngine:
    # Every test has an event loop of its own, and a lock belongs to the loop it was first waited on.
    loaded.row = asyncio.Lock()
    return loaded


async def opened(engine: SoloEngine, max_tokens: int, seed: int = 1, stop_ids: tuple[int, ...] = ()) -> SoloSession:
    return await engine.open(PROMPT, max_tokens, Sampling(seed=seed), stop_ids)


async def answer(engine: SoloEngine, max_tokens: int, seed: int = 1, stop_ids: tuple[int, ...] = ()) -> list[int]:
    session = await opened(engine, max_tokens, seed, stop_ids)
    return [event.token async for event in session]


def test_what_it_says_of_itself(engine: SoloEngine) -> None:
    assert (engine.model, engine.context, engine.spec.num_layers) == ("wiki-32l", 96, 32)
    assert engine.health().ready
    assert set(engine.telemetry()) == {DEVICE}


def test_a_seed_fixes_the_tokens_and_another_changes_them(engine: SoloEngine) -> None:
    async def run() -> None:
        first = await answer(engine, 8)
        assert len(first) == 8
        assert await answer(engine, 8) == first
        assert await answer(engine, 8, seed=2) != first
        assert await answer(engine, 4) == first[:4]

    asyncio.run(run())


def test_indices_and_reasons(engine: SoloEngine) -> None:
    async def run() -> None:
        session = await opened(engine, 3)
        events = [event async for event in session]
        assert [event.index for event in events] == [0, 1, 2]
        assert session.reason == "length"
        stopped = await opened(engine, 5, stop_ids=(events[1].token,))
        assert [event.token async for event in stopped] == [events[0].token]
        assert stopped.reason == "stop"

    asyncio.run(run())


def test_a_cancelled_session_leaves_nothing_in_the_way_of_the_next(engine: SoloEngine) -> None:
    async def run() -> None:
        expected = await answer(engine, 5)
        cancelled = await opened(engine, 50, seed=9)
        async for event in cancelled:
            if event.index == 2:
                cancelled.cancel()
        assert cancelled.reason == "cancelled"
        abandoned = await opened(engine, 50, seed=9)
        await anext(abandoned)
        abandoned.cancel()
        abandoned.cancel()
        assert await answer(engine, 5) == expected

    asyncio.run(run())


def test_sessions_wait_for_each_other(engine: SoloEngine) -> None:
    async def run() -> None:
        alone = await answer(engine, 6)
        assert await asyncio.gather(*(answer(engine, 6) for _ in range(3))) == [alone] * 3
        waiting = await opened(engine, 6)
        waiting.cancel()
        with pytest.raises(StopAsyncIteration):
            await anext(waiting)

    asyncio.run(run())


def test_what_the_stage_refuses_is_the_sessions_failure(engine: SoloEngine) -> None:
    async def run() -> None:
        session = await engine.open((1,) * 200, 4, Sampling(), ())
        with pytest.raises(EngineError, match="200 tokens"):
            await anext(session)
        assert session.reason is None
        assert len(await answer(engine, 2)) == 2

    asyncio.run(run())


def test_another_digest_is_refused_as_on_a_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    located = locate_model(str(MODEL_DIR))
    model = describe_model(located)
    other = ServedModel(model.name, "0" * 64, model.spec)
    with pytest.raises(ModelMismatch, match="digest"):
        load_solo(located, other, ServingOptions(), lambda done, total: None)
