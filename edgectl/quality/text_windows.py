"""A text file as windows of token ids: consecutive, of one length, without overlap."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agent.errors import ConfigError
from edgectl.given_file import UnreadableFile, read_given
from edgectl.tokenizer import load_tokenizer

WINDOW_TOKENS = 256
MAX_TEXT_BYTES = 64 << 20
"""Fifty times WikiText-2's test split; a file beyond that was hardly meant."""

_TEXTS = Path(__file__).parents[2] / "examples" / "text"
TEST_TEXT = _TEXTS / "wikitext-2-test.txt"
"""What perplexity is measured on where nothing else is named."""
CALIBRATION_TEXT = _TEXTS / "wikitext-2-valid.txt"
"""What hidden states are calibrated on: none of it is in the other one."""


@dataclass(frozen=True, slots=True)
class TextWindows:
    """Windows of a text as one model's tokenizer reads it."""

    windows: NDArray[np.int64]
    """Token ids [windows, tokens]."""
    digest: str
    """sha256 of the token ids: equal for the same text, tokenizer, length and number of windows."""

    @property
    def tokens(self) -> int:
        """Scored or not."""
        return int(self.windows.size)


def read_text(path: Path | None, default: Path = TEST_TEXT) -> str:
    """The text of a file. Raises ConfigError naming it: one that cannot be read, is empty, too long, or no UTF-8."""
    if path is None and not default.is_file():
        raise ConfigError(
            f"{default.name} of WikiText-2 lies in examples/text of a checkout only; name one with --text"
        )
    path = path or default
    try:
        text = read_given(path, MAX_TEXT_BYTES)
    except UnreadableFile as problem:
        raise ConfigError(f"--text {path}: {problem}") from problem
    if not text.strip():
        raise ConfigError(f"--text {path}: the file is empty")
    return text


def windows_of(text: str, model: Path, vocab_size: int, *, tokens: int | None, window: int) -> TextWindows:
    """The first `tokens` tokens of a text (None: all) in whole windows; what is left over is not used.

    Raises ConfigError for a text that is shorter than what is asked for, and BadCheckpoint for the tokenizer.
    """
    try:
        ids = load_tokenizer(model, vocab_size).encode(text)
    except ValueError as problem:
        raise ConfigError(f"--text: {problem}") from problem
    return cut_windows(ids, tokens=tokens, window=window)


def cut_windows(ids: list[int], *, tokens: int | None, window: int) -> TextWindows:
    """Token ids in whole windows. Raises ConfigError as `windows_of` does."""
    if window < 2:
        raise ConfigError(f"--window {window}: two tokens or more, for the first one is not scored")
    if tokens is not None and tokens < window:
        raise ConfigError(f"--tokens {tokens}: less than one window of {window}")
    wanted = len(ids) if tokens is None else tokens
    if len(ids) < max(wanted, window):
        raise ConfigError(f"the text has {len(ids)} tokens, {max(wanted, window)} are asked for; lower --tokens")
    count = wanted // window
    cut = np.array(ids[: count * window], np.int64).reshape(count, window)
    return TextWindows(cut, hashlib.sha256(cut.astype("<i8").tobytes()).hexdigest())
