"""A trace comes back whole, and what is wrong with a file is said once, with its name."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgectl.adaptive.trace_file import read_trace
from planner.channel import Channel, ChannelState
from rl.trace import BadTrace, dump_trace


def test_a_trace_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    channel = Channel((ChannelState(loss=0.1), ChannelState(sigma=2.0)), 7)
    path.write_text(dump_trace(channel))
    assert read_trace(path) == channel


@pytest.mark.parametrize(("data", "words"), [(b"\xff", "no UTF-8 at byte 0"), (b'{"schema": 99}', "schema")])
def test_a_file_that_is_none(data: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    path.write_bytes(data)
    with pytest.raises(BadTrace, match=words) as caught:
        read_trace(path)
    assert str(caught.value).count("channel trace") == 1
    assert str(caught.value).count("trace.json") == 1


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadTrace, match=r"none\.json: No such file"):
        read_trace(tmp_path / "none.json")
