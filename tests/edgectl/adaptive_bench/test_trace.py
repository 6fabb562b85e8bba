"""Channels that are drawn: repeatable, and as the fading says; channels that are read: exactly, or refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.errors import ConfigError
from edgectl.adaptive_bench.trace import Walk, recorded_channel, walking_channel
from planner.channel import Channel, ChannelState
from rl.channel import loss_probability
from rl.trace import MAX_CHARACTERS, dump_trace


def test_the_same_walk_gives_the_same_channel_and_another_seed_another() -> None:
    walk = Walk(tokens=100, seed=3, sigma=1.0)
    assert walking_channel(walk) == walking_channel(walk)
    assert walking_channel(walk) != walking_channel(Walk(tokens=100, seed=4, sigma=1.0))


@pytest.mark.parametrize("faded", [True, False])
def test_loss_follows_the_shape_which_stays_for_a_while(faded: bool) -> None:
    channel = walking_channel(Walk(tokens=70, hold_tokens=16, step=0.5, sigma=2.0, faded=faded))
    assert len(channel.states) == 70
    for state in channel.states:
        assert state.m is not None
        assert state.loss == pytest.approx(float(loss_probability(state.m)))
        assert state.sigma == 2.0
    shapes = [state.m for state in channel.states]
    assert all(len(set(shapes[start : start + 16])) == 1 for start in range(0, 70, 16))
    assert len(set(shapes)) == 5
    gains = {state.gain for state in channel.states}
    assert len(gains) == (70 if faded else 1)


def test_a_channel_says_how_losses_are_met() -> None:
    channel = walking_channel(Walk(tokens=4, concealment="lmmse", granularity="packet"))
    assert (channel.concealment, channel.granularity) == ("lmmse", "packet")


@pytest.mark.parametrize(
    "walk",
    [
        Walk(tokens=0),
        Walk(tokens=1 << 20),
        Walk(tokens=10, hold_tokens=0),
        Walk(tokens=10, hold_tokens=10**23),
        Walk(tokens=10, seed=-1),
        Walk(tokens=10, step=-1.0),
        Walk(tokens=10, step=float("nan")),
        Walk(tokens=10, start_m=0.2),
        Walk(tokens=10, sigma=-1.0),
        Walk(tokens=10, sigma=-1.0, faded=False),
    ],
)
def test_what_is_no_walk_is_refused(walk: Walk) -> None:
    with pytest.raises(ConfigError, match="a walk"):
        walking_channel(walk)


def test_a_recorded_channel_is_read_as_it_was(tmp_path: Path) -> None:
    channel = Channel((ChannelState(loss=0.1, m=1.5), ChannelState(sigma=2.0)), seed=7, coherence_tokens=3)
    (tmp_path / "trace.json").write_text(dump_trace(channel))
    assert recorded_channel(tmp_path / "trace.json") == channel


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "trace.json"),
        (b"{}", "schema"),
        (b"\xff\xfe", "no UTF-8 at byte 0"),
        (b'{"schema": 1, "states": [{"loss": 2}]}', "no probability"),
        (b" " * (MAX_CHARACTERS + 1), "more than .* MiB"),
    ],
)
def test_what_is_no_trace_is_refused_by_name(tmp_path: Path, data: bytes, reason: str) -> None:
    (tmp_path / "trace.json").write_bytes(data)
    with pytest.raises(ConfigError, match=reason) as refused:
        recorded_channel(tmp_path / "trace.json")
    assert "trace.json" in str(refused.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        recorded_channel(tmp_path / "absent.json")
