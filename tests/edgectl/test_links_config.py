"""`[[links]]`: rates as people write them, what is refused, and what devices are told."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import ConfigError
from agent.wire.addresses import LinkShape
from edgectl.config import load_config
from edgectl.links_config import parse_rate
from planner.channel import erasing

KEYS = {name: name * 40 for name in "ab"}


def load(directory: Path, *links: str) -> object:
    devices = "".join(f'[[devices]]\nname = "{name}"\nkey = "{key}"\n' for name, key in KEYS.items())
    path = directory / "cluster.toml"
    path.write_text(devices + "".join(f"[[links]]\n{link}\n" for link in links))
    return load_config(path, {}).settings()


@pytest.mark.parametrize(
    ("text", "bytes_per_s"),
    [
        ("10 Mbit", 1.25e6),
        ("1Gbit/s", 1.25e8),
        ("64 kbit", 8e3),
        ("800 bit", 100.0),
        ("20 MB", 2e7),
        ("1 MiB", 1 << 20),
    ],
)
def test_rates_are_bits_or_bytes_per_second(text: str, bytes_per_s: float) -> None:
    assert parse_rate(text) == bytes_per_s


@pytest.mark.parametrize("text", ["0 Mbit", "fast", "", "-1 Mbit", "0"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"rate|size"):
        parse_rate(text)


@given(st.text(max_size=12))
def test_any_text_is_a_positive_rate_or_refused(text: str) -> None:
    with suppress(ValueError):
        assert parse_rate(text) > 0


def test_links_become_shapes_by_sender_and_channels_by_pair(tmp_path: Path) -> None:
    one = 'from = "a"\nto = "b"\nrate = "10 Mbit"\nburst = "16 KiB"\nlatency_ms = 5\njitter_ms = 0.5\nseed = 3'
    settings = load(tmp_path, one, 'from = "b"\nto = "a"\nloss = 0.1\nseed = 9')
    shapes = {
        "a": (LinkShape("b", 1.25e6, 16384, 5.0, 0.5, 3),),
        "b": (LinkShape("a", seed=9),),
    }
    assert settings.links == shapes  # type: ignore[attr-defined]
    assert settings.channels == {("b", "a"): replace(erasing(0.1, 9), concealment="lmmse")}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("link", "message"),
    [
        ('from = "a"\nto = "z"', r"links\[0\].to: 'z' is not among the devices: a, b"),
        ('from = "a"\nto = "a"', "a link from a to itself"),
        ('from = "a"\nto = "b"\nlatency_ms = -1', r"latency_ms: -1.0 is outside 0 to 60000"),
        ('from = "a"\nto = "b"\njitter_ms = nan', r"jitter_ms: nan is outside"),
        ('from = "a"\nto = "b"\nloss = 1.5', r"loss: 1.5 is outside 0 to 1"),
        ('from = "a"\nto = "b"\nseed = -1', r"seed: -1 is outside"),
        ('from = "a"\nto = "b"\nrate = "soon"', r"links\[0\].rate: 'soon' is not a size"),
        ('from = "a"\nto = "b"\nburst = "soon"', r"links\[0\].burst: 'soon' is not a size"),
        ('from = "a"\nto = "b"\nlatency_ms = inf', r"latency_ms: inf is outside"),
        ('from = "a"\nto = "b"\nlatency_ms = 1e308', r"latency_ms: 1e\+308 is outside"),
        ('from = "a"\nto = "b"\nseed = 9223372036854775808', r"seed"),
        ('from = "a"\nto = "b"\nrate = "9000 Gbit"', r"links\[0\].rate: '9000 Gbit' is 1.125e\+12 bytes, 1 to 1e\+12"),
        (f'from = "a"\nto = "b"\nrate = "{"9" * 400} bit"', r"links\[0\].rate: '9{40}' is inf bytes"),
        ('from = "a"\nto = "b"\nrate = "0.001 bit"', r"links\[0\].rate: '0.001 bit' is 0.000125 bytes, 1 to"),
        ('from = "a"\nto = "b"\nburst = "5 TB"', r"links\[0\].burst: '5 TB' is 5e\+12 bytes, 0 to"),
        ('from = "a"\nto = "b"\nbandwith = 1', r"unknown key links\[0\].bandwith"),
        ('from = "a"', r"links\[0\].*to"),
        ('from = 3\nto = "b"', r"links\[0\].*from"),
    ],
)
def test_entries_that_mean_nothing_are_named(tmp_path: Path, link: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, link)


def test_a_link_is_listed_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"links\[1\]: the link from a to b is listed twice"):
        load(tmp_path, 'from = "a"\nto = "b"', 'from = "a"\nto = "b"\nlatency_ms = 1')
