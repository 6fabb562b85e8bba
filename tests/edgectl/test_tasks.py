"""Parts that run side by side end together, whichever ends first and however."""

from __future__ import annotations

import asyncio

import pytest

from edgectl.tasks import until_one_ends


def test_the_first_end_is_everybodys() -> None:
    ended: list[str] = []

    async def waits(name: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(name)

    async def ends() -> None:
        ended.append("first")

    asyncio.run(until_one_ends(a=waits("a"), b=ends(), c=waits("c")))
    assert ended == ["first", "a", "c"]


def test_what_a_part_raises_is_raised_when_all_have_ended() -> None:
    ended: list[str] = []

    async def waits() -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(task.get_name())

    async def fails() -> None:
        raise OSError("the socket is gone")

    with pytest.raises(OSError, match="the socket is gone"):
        asyncio.run(until_one_ends(receive=waits(), send=fails()))
    assert ended == ["receive"]


def test_who_is_cancelled_cancels_the_parts() -> None:
    ended: list[str] = []

    async def waits() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("part")

    async def cancelled() -> None:
        both = asyncio.create_task(until_one_ends(a=waits(), b=waits()))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        both.cancel()
        with pytest.raises(asyncio.CancelledError):
            await both

    asyncio.run(cancelled())
    assert ended == ["part", "part"]
