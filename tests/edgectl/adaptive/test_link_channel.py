"""Channels of `[[links]]`: what the keys draw, traces, and what is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.errors import ConfigError
from edgectl.adaptive.link_channel import FADING_STATES, describe_channel
from edgectl.config import load_config
from planner.channel import Channel, ChannelState
from rl.channel import loss_probability
from rl.trace import dump_trace

TRACE = Channel((ChannelState(loss=0.1, m=1.5), ChannelState(loss=0.3, sigma=2.0)), 5, 8, concealment="zero")


def channel_of(directory: Path, *lines: str) -> Channel | None:
    devices = "".join(f'[[devices]]\nname = "{name}"\nkey = "{name * 40}"\n' for name in "ab")
    path = directory / "cluster.toml"
    path.write_text(devices + '[[links]]\nfrom = "a"\nto = "b"\n' + "\n".join(lines))
    return load_config(path, {}).settings().channels.get(("a", "b"))


def test_a_link_without_a_key_does_nothing(tmp_path: Path) -> None:
    assert channel_of(tmp_path, "seed = 4", 'rate = "10 Mbit"') is None
    assert channel_of(tmp_path, 'concealment = "zero"', "packet = 64") is None


def test_keys_say_what_is_lost_and_what_is_done_about_it(tmp_path: Path) -> None:
    found = channel_of(
        tmp_path,
        "loss = 0.2\nsigma = 5\nseed = 3\ngranularity = 'packet'\npacket = 64\ninterleaved = true",
        "concealment = 'mean'\nprotection = 'int8'\ncoherence_tokens = 4",
    )
    states = (ChannelState(loss=0.2, sigma=5.0),)
    assert found == Channel(states, 3, 4, "packet", 64, True, "mean", "int8")
    noisy = channel_of(tmp_path, "snr_db = -3")
    assert noisy is not None
    assert noisy.states == (ChannelState(snr_db=-3.0),)
    assert noisy.concealment == "lmmse"


def test_a_fading_is_drawn_once_by_its_seed(tmp_path: Path) -> None:
    found = channel_of(tmp_path, "nakagami_m = 1\nsigma = 5\nseed = 7")
    assert found == channel_of(tmp_path, "nakagami_m = 1\nsigma = 5\nseed = 7")
    assert found != channel_of(tmp_path, "nakagami_m = 1\nsigma = 5\nseed = 8")
    assert found is not None
    assert len(found.states) == FADING_STATES
    assert {(state.m, state.loss, state.sigma) for state in found.states} == {(1.0, float(loss_probability(1.0)), 5.0)}
    gains = [state.gain for state in found.states]
    assert len(set(gains)) > FADING_STATES // 2
    walked = channel_of(tmp_path, "nakagami_m = 1.5\nnakagami_walk = 0.2\nequalised = true\nsigma = 1\nseed = 7")
    assert walked is not None
    shapes = [state.m for state in walked.states if state.m is not None]
    assert (shapes[0], len(set(shapes)) > 100) == (1.5, True)
    assert min(shapes) >= 0.5
    assert max(shapes) <= 3.0
    assert {state.gain for state in walked.states} == {1.0}


def test_a_trace_lies_beside_the_file_and_keys_may_say_how_it_is_received(tmp_path: Path) -> None:
    (tmp_path / "trace.json").write_text(dump_trace(TRACE))
    assert channel_of(tmp_path, 'channel = "trace.json"') == TRACE
    other = channel_of(tmp_path, 'channel = "trace.json"', 'concealment = "rescale"\ncoherence_tokens = 2')
    assert other is not None
    assert (other.states, other.seed) == (TRACE.states, 5)
    assert (other.concealment, other.coherence_tokens) == ("rescale", 2)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("loss = 1.01", r"links\[0\].loss: 1.01 is outside 0 to 1"),
        ("loss = nan", r"links\[0\].loss: nan is outside"),
        ("nakagami_m = 0.4", r"links\[0\].nakagami_m: 0.4 is outside 0.5"),
        ("nakagami_m = inf", r"links\[0\].nakagami_m: inf is outside"),
        ("sigma = -1", r"links\[0\].sigma: -1.0 is outside"),
        ("sigma = inf", r"links\[0\].sigma: inf is outside"),
        ("snr_db = 1000", r"links\[0\].snr_db: 1000.0 is outside"),
        ("packet = 63", r"links\[0\].packet: 63 is outside 64 to 65507"),
        ("coherence_tokens = 0", r"links\[0\].coherence_tokens: 0 is outside 1"),
        ("nakagami_m = 1\nloss = 0.1", r"links\[0\].loss: it follows from nakagami_m"),
        ("nakagami_walk = 0.1", r"links\[0\].nakagami_walk: there is no fading without nakagami_m"),
        ("nakagami_m = 4\nnakagami_walk = 0.1", r"links\[0\].nakagami_m: 4.0 is beyond 3"),
        ("equalised = true", r"links\[0\].equalised: there is no fading without nakagami_m"),
        ("sigma = 1\nsnr_db = 3", r"links\[0\].snr_db: the noise is given by sigma already"),
        ("granularity = 'byte'", r"links\[0\].*granularity"),
        ("concealment = 'magic'", r"links\[0\].*concealment"),
        ("channel = 'absent.json'", r"links\[0\].channel: .*absent.json: No such file"),
        ("channel = 'trace.json'\nloss = 0.1", r"links\[0\].loss: the trace of `channel` says so already"),
        ("channel = 'broken.json'", r"links\[0\].channel: .*channel trace: .*broken.json"),
        ("channel = 'binary.json'", r"links\[0\].channel: .*binary.json"),
        ("channel = '.'", r"links\[0\].channel: .*directory"),
    ],
)
def test_what_means_nothing_is_named(tmp_path: Path, lines: str, message: str) -> None:
    (tmp_path / "trace.json").write_text(dump_trace(TRACE))
    (tmp_path / "broken.json").write_text('{"schema": 1, "states": [{"loss": 3}]}')
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=message):
        channel_of(tmp_path, lines)


def test_a_channel_is_described_in_a_few_words(tmp_path: Path) -> None:
    assert describe_channel(TRACE) == "loss 0.1 to 0.3, sigma 0 to 2, elements, zero"
    noisy = channel_of(tmp_path, "snr_db = 10")
    assert noisy is not None
    assert describe_channel(noisy) == "loss 0, SNR 10 dB on average, elements, lmmse"
