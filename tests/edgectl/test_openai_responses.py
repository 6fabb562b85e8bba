from __future__ import annotations

from agent.wire.messages import Sampling
from edgectl.choice_text import Piece, ShownToken
from edgectl.openai_api import Ask, Choice
from edgectl.openai_responses import Envelope, Shape, WholeChoice, shape_of, usage_of
from tests.fakes.http_server import bundled_tokenizer

ENVELOPE = Envelope("id-1", 1700000000, "m")
PIECE = Piece(0, "hi", (ShownToken(5, -0.5, ((5, -0.5), (6, float("-inf"))), 0),))


def shape(*, chat: bool, logprobs: bool = False, include_usage: bool = False) -> Shape:
    choice = Choice(0, (0,), 1, Sampling(logprobs=logprobs), (), begins_text=True)
    return shape_of(Ask((choice,), 1, chat, True, include_usage), ENVELOPE, bundled_tokenizer())


def test_chunks_of_a_chat() -> None:
    chat = shape(chat=True)
    opening = chat.opening(2)
    assert opening is not None
    assert {name: opening[name] for name in ("id", "object", "created", "model")} == {
        "id": "id-1",
        "object": "chat.completion.chunk",
        "created": 1700000000,
        "model": "m",
    }
    assert opening["choices"] == [
        {"index": 2, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
    ]
    assert chat.delta(PIECE)["choices"][0]["delta"] == {"content": "hi"}
    assert chat.ending(0, "stop")["choices"] == [
        {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
    ]  # fmt: skip
    assert "usage" not in opening


def test_usage_is_null_in_every_chunk_but_the_last() -> None:
    for chat in (True, False):
        chunks = shape(chat=chat, include_usage=True)
        assert chunks.delta(PIECE)["usage"] is None
        closing = chunks.closing(usage_of(3, 4))
        assert closing["choices"] == []
        assert closing["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}


def test_logprobs_of_a_chat_carry_bytes() -> None:
    euro = bundled_tokenizer().encode("€")[0]
    piece = Piece(0, "€", (ShownToken(euro, -0.1, ((1, -2.0),), 0),))
    logprobs = shape(chat=True, logprobs=True).delta(piece)["choices"][0]["logprobs"]
    assert logprobs["content"] == [
        {
            "token": "\ufffd",
            "logprob": -0.1,
            "bytes": [0xE2],
            "top_logprobs": [{"token": "</s>", "logprob": -2.0, "bytes": None}],
        }
    ]


def test_logprobs_of_a_completion_are_columns() -> None:
    euro = bundled_tokenizer().encode("€")[0]
    piece = Piece(0, "x", (*PIECE.tokens, ShownToken(euro, -1.0, (), 2)))
    logprobs = shape(chat=False, logprobs=True).delta(piece)["choices"][0]["logprobs"]
    five, six = (bundled_tokenizer().decode([token]) for token in (5, 6))
    assert logprobs == {
        "tokens": [five, "bytes:\\xe2"],
        "token_logprobs": [-0.5, -1.0],
        "top_logprobs": [{five: -0.5, six: -9999.0}, {"bytes:\\xe2": -1.0}],
        "text_offset": [0, 2],
    }


def test_a_whole_answer_is_its_chunks_together() -> None:
    choice = WholeChoice(reason="length")
    choice.add(PIECE)
    choice.add(Piece(0, " you"))
    chat = shape(chat=True, logprobs=True).whole([choice], usage_of(1, 2))
    assert chat["object"] == "chat.completion"
    assert chat["choices"][0]["message"] == {"role": "assistant", "content": "hi you", "refusal": None}
    assert chat["choices"][0]["finish_reason"] == "length"
    assert len(chat["choices"][0]["logprobs"]["content"]) == 1
    plain = shape(chat=False).whole([choice, WholeChoice(reason="stop")], usage_of(1, 2))
    assert plain["object"] == "text_completion"
    assert [c["text"] for c in plain["choices"]] == ["hi you", ""]
    assert plain["choices"][0]["logprobs"] is None
