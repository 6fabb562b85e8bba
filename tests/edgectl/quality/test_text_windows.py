"""Texts as windows of token ids, and texts that are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from agent.errors import ConfigError
from edgectl.quality.text_windows import CALIBRATION_TEXT, MAX_TEXT_BYTES, TEST_TEXT, cut_windows, read_text, windows_of

WIKI = Path(__file__).parents[3] / "examples" / "models" / "wiki-32l"


def test_windows_follow_each_other_without_overlap() -> None:
    cut = cut_windows(list(range(107)), tokens=None, window=10)
    assert cut.windows.shape == (10, 10)
    assert cut.windows.reshape(-1).tolist() == list(range(100))
    assert cut.tokens == 100
    assert cut_windows(list(range(107)), tokens=39, window=10).windows.tolist() == np.arange(30).reshape(3, 10).tolist()


def test_the_digest_is_of_what_is_measured() -> None:
    digests = {
        cut_windows(ids, tokens=tokens, window=5).digest
        for ids, tokens in (([1] * 10, None), ([1] * 14, None), ([1] * 10, 5), ([1] * 9 + [2], None))
    }
    assert len(digests) == 3, "what is cut off makes no difference, all else does"


@pytest.mark.parametrize(
    ("tokens", "window", "words"),
    [
        (None, 1, "--window 1: two tokens or more"),
        (9, 10, "--tokens 9: less than one window of 10"),
        (60, 10, "the text has 50 tokens, 60 are asked for"),
        (None, 51, "the text has 50 tokens, 51 are asked for"),
    ],
)
def test_too_little(tokens: int | None, window: int, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        cut_windows([0] * 50, tokens=tokens, window=window)


def test_the_bundled_texts() -> None:
    test, calibration = read_text(None), read_text(None, CALIBRATION_TEXT)
    assert test.startswith(" \n = Robert <unk> = \n")
    assert 200_000 < len(test.encode()) < 250_000
    assert 100_000 < len(calibration.encode()) < 150_000
    lines = {line for line in test.splitlines() if len(line) > 100}
    assert not lines & set(calibration.splitlines()), "nothing is calibrated on what is measured"
    assert "CC BY-SA 3.0" in (TEST_TEXT.parent / "README.md").read_text(encoding="utf-8")


def test_the_bundled_text_makes_these_windows() -> None:
    """The first ids of what every perplexity in docs/ was measured on."""
    cut = windows_of(read_text(None), WIKI, 4096, tokens=4096, window=256)
    assert cut.windows.shape == (16, 256)
    assert cut.digest.startswith("89a7809747c8e857")


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "is empty"), (b" \n\t", "is empty"), (b"ab\xff", "no UTF-8 at byte 2"), (b"\x80", "no UTF-8 at byte 0")],
)
def test_files_that_are_no_text(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"--text .*text.txt: .*{words}"):
        read_text(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_text(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="Is a directory"):
        read_text(tmp_path)
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(MAX_TEXT_BYTES + 1)
    with pytest.raises(ConfigError, match="more than 64 MiB"):
        read_text(large)
    with pytest.raises(ConfigError, match="name one with --text"):
        read_text(None, tmp_path / "not-shipped.txt")
