from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.wire.messages import Sampling, TokenEvent
from edgectl.choice_text import ChoiceText, Piece
from edgectl.openai_api import Choice
from edgectl.tokenizer import load_tokenizer
from tests.fakes.http_server import bundled_tokenizer
from tests.fakes.llama2_tokenizer import write_llama2_tokenizer

texts = st.text(alphabet="ab \n é😀", max_size=30)


def choice(stop: tuple[str, ...] = (), echo: str = "") -> Choice:
    return Choice(0, (0,), 100, Sampling(), stop, begins_text=True, echo=echo)


def run(tokens: list[int], stop: tuple[str, ...] = (), echo: str = "") -> tuple[list[Piece], ChoiceText]:
    text = ChoiceText(choice(stop, echo), bundled_tokenizer())
    pieces = []
    for index, token in enumerate(tokens):
        pieces.append(text.push(TokenEvent("s", index, token, -float(index))))
        if text.stopped:
            break
    pieces.append(text.finish())
    return [piece for piece in pieces if piece is not None], text


def cut(text: str, stops: tuple[str, ...]) -> str:
    """The oracle: text before the stop string that is complete first, the longest of several."""
    for end in range(1, len(text) + 1):
        found = [len(stop) for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(found)]
    return text


@given(texts, st.lists(st.text(alphabet="ab \né😀", min_size=1, max_size=4), max_size=4).map(tuple))
def test_streamed_text_is_the_whole_text_cut_at_the_stop_string(text: str, stops: tuple[str, ...]) -> None:
    tokens = bundled_tokenizer().encode(text) if text else []
    pieces, state = run(tokens, stops)
    sent = "".join(piece.text for piece in pieces)
    assert sent == cut(text, stops)
    assert state.stopped == (sent != text)
    # Counted are the tokens up to the one that completes the stop string, and no fewer would do.
    if state.stopped:
        decode = bundled_tokenizer().decode
        assert any(stop in decode(tokens[: state.tokens]) for stop in stops)
        assert not any(stop in decode(tokens[: state.tokens - 1]) for stop in stops)


@given(texts, st.lists(st.text(alphabet="ab \né", min_size=1, max_size=3), max_size=2).map(tuple))
def test_each_token_is_shown_once_with_the_text_it_begins_in(text: str, stops: tuple[str, ...]) -> None:
    tokens = bundled_tokenizer().encode(text) if text else []
    pieces, state = run(tokens, stops, echo="echo")
    shown = [token for piece in pieces for token in piece.tokens]
    assert [token.token for token in shown] == tokens[: len(shown)]
    sent = "echo" + "".join(piece.text for piece in pieces)
    if state.stopped:
        assert all(token.offset < len(sent) for token in shown)
    else:
        assert len(shown) == len(tokens)
    for index, token in enumerate(shown):
        before = bundled_tokenizer().decode(tokens[:index]).rstrip("\ufffd")
        assert sent[4 : token.offset] == before[: token.offset - 4]
        assert token.logprob == -float(index)


def test_a_character_is_sent_when_its_last_byte_is_there() -> None:
    tokens = bundled_tokenizer().encode("😀")
    assert len(tokens) == 4
    text = ChoiceText(choice(), bundled_tokenizer())
    assert [text.push(TokenEvent("s", i, token)) for i, token in enumerate(tokens[:3])] == [None] * 3
    piece = text.push(TokenEvent("s", 3, tokens[3]))
    assert piece is not None
    assert piece.text == "😀"
    assert [token.offset for token in piece.tokens] == [0] * 4


def test_an_answer_cut_inside_a_character_ends_before_it_and_still_shows_its_tokens() -> None:
    pieces, _ = run(bundled_tokenizer().encode("a😀")[:-1])
    assert "".join(piece.text for piece in pieces) == "a"
    assert sum(len(piece.tokens) for piece in pieces) == 4


@pytest.mark.parametrize(("begins_text", "expected"), [(True, "he he"), (False, " he he")])
def test_sentencepiece_drops_a_leading_space_only_where_a_text_begins(
    tmp_path: Path, begins_text: bool, expected: str
) -> None:
    tokenizer = load_tokenizer(tmp_path, write_llama2_tokenizer(tmp_path))
    tokens = tokenizer.encode("he he")
    assert [tokenizer.token_name(token) for token in tokens] == ["<s>", "▁he", "▁he"]
    text = ChoiceText(Choice(0, (1,), 100, Sampling(), (), begins_text), tokenizer)
    pieces = [text.push(TokenEvent("s", index, token)) for index, token in enumerate(tokens)]
    assert "".join(piece.text for piece in pieces if piece is not None) == expected


def test_special_tokens_have_no_text() -> None:
    pieces, state = run([0, *bundled_tokenizer().encode("a"), 1])
    assert "".join(piece.text for piece in pieces) == "a"
    assert state.tokens == 3
