from __future__ import annotations

import time
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from edgectl.detokenizer import Detokenizer


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in pairwise(places)] or [data]


@given(st.text(), st.lists(st.integers(0, 1000)))
def test_text_comes_out_whole_however_its_bytes_are_split(text: str, cuts: list[int]) -> None:
    detokenizer = Detokenizer()
    pieces = [detokenizer.push(part) for part in split(text.encode(), cuts)]
    assert "".join(pieces) == text
    for piece in pieces:
        piece.encode()  # lone surrogates would raise


@given(st.binary(), st.lists(st.integers(0, 1000)))
def test_any_bytes_decode_as_they_would_whole(data: bytes, cuts: list[int]) -> None:
    detokenizer = Detokenizer()
    text = "".join(detokenizer.push(part) for part in split(data, cuts))
    whole = data.decode(errors="replace")
    # Only an incomplete character at the very end may be missing: one replacement character.
    assert whole in (text, text + "\ufffd")


@given(st.text(min_size=1), st.integers(1, 3))
def test_a_sequence_that_ends_inside_a_character_ends_before_it(text: str, missing: int) -> None:
    data = (text + "\U0001f600").encode()
    detokenizer = Detokenizer()
    assert "".join(detokenizer.push(bytes([byte])) for byte in data[:-missing]) == text


def test_time_is_linear_in_the_tokens() -> None:
    """Re-decoding everything each token would take minutes here; invalid bytes must not pile up either."""
    detokenizer = Detokenizer()
    begin = time.process_time()
    for _ in range(200_000):
        detokenizer.push(b"\x80")
    assert time.process_time() - begin < 5
