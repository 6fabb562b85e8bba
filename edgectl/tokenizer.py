"""The model's tokenizer: text to ids, messages to ids, ids to bytes.

Wraps the `tokenizer.json` of a model directory through transformers' PreTrainedTokenizerFast, which reads the chat
template as well. `AutoTokenizer` would import torch where it is installed and could run code from the model directory;
neither happens here. transformers is imported when a tokenizer is loaded, not before: it takes most of a second.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.errors import BadCheckpoint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class ChatTemplateError(ValueError):
    """The chat template refused the messages; the text is the template's own."""


def byte_alphabet() -> dict[str, int]:
    """Character → byte of byte-level BPE (Radford et al., GPT-2, `bytes_to_unicode`): printable bytes stand for
    themselves, the others for the characters from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(hidden)}


class Tokenizer:
    """Ids are those of the model, `0 <= id < vocab_size`; safe to use from several threads."""

    def __init__(self, fast: PreTrainedTokenizerFast, config_stop_ids: Sequence[int], vocab_size: int) -> None:
        self._fast = fast
        self._backend: Any = fast.backend_tokenizer
        self.vocab_size = vocab_size
        own = [] if fast.eos_token_id is None else [int(fast.eos_token_id)]
        self.stop_ids = tuple(sorted({i for i in (*config_stop_ids, *own) if 0 <= i < vocab_size}))
        """Ids that end an answer: generation_config.json's or else config.json's, and the tokenizer's own eos."""
        self._special = {i for i, token in self._backend.get_added_tokens_decoder().items() if token.special}
        decoders = _decoder_types(self._backend)
        self._alphabet = byte_alphabet() if "ByteLevel" in decoders else None
        self._byte_fallback = "ByteFallback" in decoders
        self._anchor = next(iter(self._backend.encode("a", add_special_tokens=False).ids), 0)
        self._anchor_text = self._decode([self._anchor])
        self._bytes: dict[int, bytes] = {}

    @property
    def has_chat_template(self) -> bool:
        return self._fast.chat_template is not None

    def encode(self, text: str) -> list[int]:
        """Ids of a plain prompt, with the special tokens the model's post-processor adds; an empty text is its bos
        token where there is one. Raises ValueError for an id the model has no row for."""
        ids = self._backend.encode(text, add_special_tokens=True).ids
        if not ids and self._fast.bos_token_id is not None:
            ids = [int(self._fast.bos_token_id)]
        return self._checked(ids)

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Ids of a conversation up to where the assistant's answer begins.

        The template writes the special tokens itself. Raises ChatTemplateError when it refuses the messages.
        """
        import jinja2

        try:
            text = self._fast.apply_chat_template(
                [dict(message) for message in messages], tokenize=False, add_generation_prompt=True
            )
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError) as problem:
            raise ChatTemplateError(str(problem)) from problem
        return self._checked(self._backend.encode(text, add_special_tokens=False).ids)

    def is_special(self, token: int) -> bool:
        """Control tokens (bos, eos, …) have a name but no text."""
        return token in self._special

    def token_bytes(self, token: int) -> bytes:
        """What a token adds to a text that has begun; nothing for special tokens and ids without a token."""
        known = self._bytes.get(token)
        if known is None:
            known = self._bytes[token] = self._find_bytes(token)
        return known

    def first_token_bytes(self, token: int) -> bytes:
        """What a token contributes at the very start of a text, where SentencePiece drops one leading space."""
        if self._alphabet is not None:
            return self.token_bytes(token)
        text = self._decode([token])
        return text.encode() if "\ufffd" not in text else self.token_bytes(token)

    def token_name(self, token: int) -> str:
        """The token as the vocabulary spells it; empty for ids without a token."""
        return self._backend.id_to_token(token) or ""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of a whole sequence, special tokens left out."""
        return self._decode(list(ids))

    def _decode(self, ids: list[int]) -> str:
        text: str = self._backend.decode(ids, skip_special_tokens=True)
        return text

    def _find_bytes(self, token: int) -> bytes:
        name = self.token_name(token)
        if not name or token in self._special:
            return b""
        if self._alphabet is not None:
            # The decoder of byte-level BPE takes a token with any other character (an added one) as it is written.
            alphabet = self._alphabet
            return bytes(alphabet[c] for c in name) if all(c in alphabet for c in name) else name.encode()
        if self._byte_fallback and (match := _BYTE_TOKEN.fullmatch(name)):
            return bytes([int(match[1], 16)])
        # Decoded after another token, so that a leading space is kept: it is dropped only at the start of a text.
        return self._decode([self._anchor, token])[len(self._anchor_text) :].encode()

    def _checked(self, ids: list[int]) -> list[int]:
        outside = next((i for i in ids if not 0 <= i < self.vocab_size), None)
        if outside is not None:
            raise ValueError(f"the tokenizer makes id {outside}, but the model has ids 0 to {self.vocab_size - 1}")
        return ids


def load_tokenizer(directory: Path, vocab_size: int) -> Tokenizer:
    """Reads tokenizer.json, tokenizer_config.json, chat_template.jinja and the eos ids of a model directory.

    Raises BadCheckpoint naming the file that is missing or cannot be read.
    """
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise BadCheckpoint(
            f"{path} is missing: the tokenizer is read from there (transformers' `tokenizer.save_pretrained` makes it "
            "where a model has only tokenizer.model)"
        )
    from transformers import PreTrainedTokenizerFast

    try:
        fast = PreTrainedTokenizerFast.from_pretrained(str(directory), local_files_only=True)
    except Exception as problem:  # the tokenizers library raises plain Exception
        raise BadCheckpoint(f"{path} cannot be read as a tokenizer: {problem}") from problem
    return Tokenizer(fast, _config_stop_ids(directory), vocab_size)


def _config_stop_ids(directory: Path) -> tuple[int, ...]:
    for name in ("generation_config.json", "config.json"):
        path = directory / name
        if not path.is_file():
            continue
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as problem:
            raise BadCheckpoint(f"{path} is not JSON: {problem}") from problem
        ids = config.get("eos_token_id") if isinstance(config, dict) else None
        if isinstance(ids, int):
            return (ids,)
        if isinstance(ids, list) and all(isinstance(i, int) for i in ids):
            return tuple(ids)
        if ids is not None:
            raise BadCheckpoint(f"{path}: eos_token_id must be an integer or a list of integers, not {ids!r}")
    return ()


def _decoder_types(backend: Any) -> set[str]:
    """Types of the decoder and, where it is a sequence, of its parts."""
    if backend.decoder is None:
        return set()
    state = json.loads(backend.decoder.__getstate__())
    return {part["type"] for part in state.get("decoders", [state])}
