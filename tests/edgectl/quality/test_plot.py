"""One picture of all models, the same bytes each time, from whatever was varied."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

from agent.errors import ConfigError
from edgectl.failures import ExitCode
from edgectl.output import CommandFailure
from edgectl.quality.collect import Collected
from edgectl.quality.plot import check_picture, plot_perplexity
from tests.fakes.collected import collected, record

LOSSES = collected(*(record(split, loss, 40.0, 41.0 + 99 * loss) for split in (1, 4) for loss in (0.0, 0.1, 0.3)))
SIGMAS = collected(*(record(split, 0.1, 40.0 + sigma, sigma=sigma) for split in (1, 4) for sigma in (0.0, 5.0)))
SNRS = collected(*(record(4, 0.1, 40.0 - snr, snr_db=snr) for snr in (-5.0, 5.0)))
BOTH = collected(
    *(record(4, loss, 40.0 + 500 * loss + s, sigma=s) for loss in (0.0, 0.3) for s in (0.0, 5.0)), model="n"
)
BROKEN = collected(record(1, 0.1, math.nan, math.inf), record(4, 0.1, math.nan))


def text_of(found: list[Collected], path: Path) -> str:
    plot_perplexity(found, path, "made by edgectl eval ppl")
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (LOSSES, ["loss 0.1", "l = 4", "probability that an element is lost", "layers before the hop"]),
        (SIGMAS, ["sigma 5", "sigma of the noise", "l = 1"]),
        (SNRS, ["-5 dB", "SNR per token, dB"]),
        (BOTH, ["loss 0.3, sigma 5", "l = 4, sigma 0"]),
        (BROKEN, ["l = 1"]),
    ],
)
def test_what_was_varied_is_drawn(found: Collected, words: list[str], tmp_path: Path) -> None:
    text = text_of([found], tmp_path / "new" / "a.svg")
    for word in (*words, "made by edgectl eval ppl"):
        assert f"<!-- {word} -->" in text


def test_a_column_per_model_and_the_same_bytes_each_time(tmp_path: Path) -> None:
    first = text_of([LOSSES, BOTH], tmp_path / "a.svg")
    assert first == text_of([LOSSES, BOTH], tmp_path / "b.svg")
    assert "<!-- m -->" in first
    assert "<!-- n -->" in first
    plot_perplexity([LOSSES], tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_places_that_cannot_be_drawn_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"--plot .*a\.txt: the name has to end with \.svg or \.png"):
        plot_perplexity([LOSSES], tmp_path / "a.txt")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--plot .*file"):
        plot_perplexity([LOSSES], tmp_path / "file" / "a.svg")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(CommandFailure, match="matplotlib") as refused:
        plot_perplexity([LOSSES], tmp_path / "a.svg")
    assert refused.value.exit_code == ExitCode.UNAVAILABLE


@pytest.mark.parametrize(("name", "problem"), [("a.gif", "has to end with"), ("file/a.svg", "File exists")])
def test_where_no_picture_can_be_is_said_before_anything_is_measured(tmp_path: Path, name: str, problem: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=problem):
        check_picture(tmp_path / name)
