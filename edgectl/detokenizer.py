"""Token bytes to text, one token at a time: only whole characters come out, in time linear in the bytes.

A token may end inside a UTF-8 character. The incremental decoder keeps at most three such bytes and never looks back;
bytes that are no UTF-8 become U+FFFD, one per maximal subpart (Unicode 16, 3.9, table 3-8), exactly as the tokenizers'
own lossy decoding of the whole byte sequence would make them. A sequence that ends inside a character ends before it.
"""

from __future__ import annotations

import codecs


class Detokenizer:
    """Text of one growing token sequence, given the bytes of each token."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_bytes: bytes) -> str:
        """The characters that these bytes complete; empty while a character is under way."""
        return self._decoder.decode(token_bytes)
