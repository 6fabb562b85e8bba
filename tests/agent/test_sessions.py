"""A session's states, its chunks and its events, without any stage."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.compute.kernels import crc32c
from agent.errors import AgentError
from agent.sessions import (
    MAX_LOGIT_BIASES,
    MAX_PATIENCE_S,
    MAX_TOP_LOGPROBS,
    TRANSITIONS,
    Happened,
    Session,
    SessionState,
    check_session,
    chunk_lengths,
)
from agent.wire import codec
from agent.wire.codec import MAX_ANSWER_BYTES, MAX_OPENINGS_BYTES, MAX_ROWS, Answered, Frame, FrameKind, RowRef
from agent.wire.messages import Opening, Sampling, SessionEnded, SessionFailed, TokenEvent
from tests.fakes.fake_executor import VOCABULARY
from tests.fakes.ring import session

CONTEXT = 64


def fresh(prompt: int = 5, **options: object) -> Session:
    opened = session("s", range(prompt), **options)  # type: ignore[arg-type]
    return Session(opened, 0, 1)


def prefilled(**options: object) -> Session:
    one = fresh(**options)  # type: ignore[arg-type]
    while one.state is SessionState.PREFILL:
        one.next_chunk(4)
    return one


# --- what may have a row ---

MOST_BIASES = tuple((token, 99.5) for token in range(1 << 20, (1 << 20) + MAX_LOGIT_BIASES))


@pytest.mark.parametrize(
    ("options", "sampling", "problem"),
    [
        ({"prompt": [1, -1]}, {}, "token ids -1 to 1 in `prompt`"),
        ({"prompt": [1, VOCABULARY]}, {}, "in `prompt` do not lie in 0 to 96"),
        ({"prompt": [1, 2**63]}, {}, "in `prompt`"),
        ({"emitted": [-1]}, {}, "in `emitted`"),
        ({"emitted": [5, VOCABULARY]}, {}, "in `emitted`"),
        ({"patience_s": float("nan")}, {}, "patience"),
        ({"patience_s": 2 * MAX_PATIENCE_S}, {}, "patience"),
        ({}, {"temperature": float("nan")}, "temperature"),
        ({}, {"temperature": -1.0}, "temperature"),
        ({}, {"top_p": 0.0}, "top_p"),
        ({}, {"top_k": -1}, "top_k"),
        ({}, {"top_logprobs": -1}, "top_logprobs"),
        ({}, {"top_logprobs": MAX_TOP_LOGPROBS + 1}, "top log-probabilities"),
        ({}, {"presence_penalty": float("inf")}, "presence_penalty"),
        ({}, {"logit_bias": ((VOCABULARY, 1.0),)}, "logit_bias"),
        ({}, {"logit_bias": ((3, float("nan")),)}, "logit_bias"),
        ({}, {"logit_bias": (*MOST_BIASES, (3, 1.0))}, "logit biases"),
    ],
)
def test_what_a_run_would_fail_with_is_refused_before_it_has_a_row(
    options: dict[str, object], sampling: dict[str, object], problem: str
) -> None:
    given_ = {"prompt": [1, 2, 3], **options}
    opened = session("s", sampling=Sampling(**sampling), **given_)  # type: ignore[arg-type]
    with pytest.raises(AgentError, match=problem):
        check_session(opened, CONTEXT, VOCABULARY)


def test_the_most_that_is_allowed_has_room_in_its_frames() -> None:
    sampling = Sampling(seed=2**63, logit_bias=MOST_BIASES, logprobs=True, top_logprobs=MAX_TOP_LOGPROBS)
    check_session(session("s", [1], sampling=sampling), CONTEXT, 1 << 24)
    frame = Frame(FrameKind.PREFILL, 1, 1, 0, rows=(RowRef(0, 1, 0),), openings=(Opening(0, 1, sampling),))
    assert len(codec.encode(frame, crc32c)[2]) <= MAX_OPENINGS_BYTES
    answer = Answered(1 << 20, -0.5, tuple((1 << 20, -0.5) for _ in range(MAX_TOP_LOGPROBS)))
    assert len(codec.encode_answers((answer,) * MAX_ROWS)) <= MAX_ANSWER_BYTES


# --- chunks ---


@given(tokens=st.integers(1, 5000), largest=st.integers(3, 4096))
def test_chunks_cover_the_prompt_and_none_is_a_single_token(tokens: int, largest: int) -> None:
    lengths = chunk_lengths(tokens, largest)
    assert sum(lengths) == tokens
    assert max(lengths) <= largest
    assert min(lengths) > 1 or tokens == 1
    assert len(lengths) == -(-tokens // largest), "as few as possible"


@pytest.mark.parametrize(
    ("tokens", "largest", "lengths"),
    [
        (1, 4, [1]),
        (4, 4, [4]),
        (5, 4, [3, 2]),
        (6, 4, [4, 2]),
        (9, 4, [4, 3, 2]),
        (4, 3, [2, 2]),
        (257, 128, [128, 127, 2]),
    ],
)
def test_chunks_by_hand(tokens: int, largest: int, lengths: list[int]) -> None:
    assert chunk_lengths(tokens, largest) == lengths


@given(tokens=st.integers(1, 60), largest=st.lists(st.integers(3, 9), min_size=1))
def test_chunks_of_changing_length_carry_the_prompt_in_order(tokens: int, largest: list[int]) -> None:
    one = fresh(tokens)
    sent: list[int] = []
    turn = 0
    while one.state is SessionState.PREFILL:
        assert (one.position, one.remaining) == (len(sent), tokens - len(sent))
        most = largest[turn % len(largest)]
        chunk, last = one.next_chunk(most)
        assert len(chunk) <= most
        assert len(chunk) > 1 or tokens == 1
        sent += chunk
        turn += 1
        assert last == (one.remaining == 0)
    assert tuple(sent) == one.opened.prompt


# --- states ---


@pytest.mark.parametrize(("state", "what"), list(product(SessionState, Happened)))
def test_every_pair_is_a_transition_or_a_bug(state: SessionState, what: Happened) -> None:
    one = fresh()
    one.state = state
    if (state, what) in TRANSITIONS:
        one.happened(what)
        assert one.state is TRANSITIONS[state, what]
    else:
        with pytest.raises(KeyError):
            one.happened(what)
        assert one.state is state


def test_nothing_leads_out_of_the_end_and_everything_leads_there() -> None:
    assert not [pair for pair in TRANSITIONS if pair[0] is SessionState.ENDED]
    for state in set(SessionState) - {SessionState.ENDED}:
        assert TRANSITIONS[state, Happened.FINISHED] is SessionState.ENDED


# --- tokens ---


def test_tokens_are_numbered_and_fed_back() -> None:
    one = prefilled(max_tokens=3)
    assert one.take(Answered(7, -0.5, ((7, -0.5),)), CONTEXT) == [TokenEvent("s", 0, 7, -0.5, ((7, -0.5),))]
    assert (one.next_token(), one.position) == (7, 6)
    assert one.take(Answered(8), CONTEXT) == [TokenEvent("s", 1, 8)]
    assert (one.next_token(), one.position) == (8, 7)
    assert one.take(Answered(9), CONTEXT) == [TokenEvent("s", 2, 9), SessionEnded("s", "length", 3)]
    assert one.has_ended


def test_a_stop_token_is_reported_before_it_ends_the_session() -> None:
    one = prefilled(max_tokens=1, stop_ids=(7,))
    assert one.take(Answered(7), CONTEXT) == [TokenEvent("s", 0, 7), SessionEnded("s", "stop", 1)]


@pytest.mark.parametrize(("prompt", "tokens"), [(7, 2), (6, 3)])
def test_the_last_token_is_the_one_that_has_no_place_to_be_fed_to(prompt: int, tokens: int) -> None:
    """A context of 8 holds 8 tokens; what is sampled after the eighth cannot be followed by another."""
    one = prefilled(prompt=prompt, max_tokens=99)
    came = 0
    while True:
        events = one.take(Answered(1), 8)
        came += 1
        if one.has_ended:
            break
        one.next_token()
    assert came == tokens
    assert one.position == 8
    assert events[-1] == SessionEnded("s", "length", tokens)


def test_emitted_tokens_are_fed_back_in_silence() -> None:
    one = prefilled(max_tokens=4, emitted=(4, 5))
    assert one.take(Answered(99), CONTEXT) == []
    assert one.next_token() == 4, "what the client has, whatever was sampled"
    assert one.take(Answered(5), CONTEXT) == []
    assert one.next_token() == 5
    assert one.take(Answered(6), CONTEXT) == [TokenEvent("s", 2, 6)]


def test_a_session_that_had_emitted_everything_ends_at_once() -> None:
    one = prefilled(max_tokens=1, emitted=(4,))
    assert one.take(Answered(4), CONTEXT) == [SessionEnded("s", "length", 1)]


# --- ends and events ---


def test_an_ended_session_takes_nothing_more() -> None:
    one = fresh()
    assert one.end("cancelled") == [SessionEnded("s", "cancelled", 0)]
    with pytest.raises(KeyError):
        one.end("stop")
    with pytest.raises(KeyError):
        one.fail("x", "y")
    with pytest.raises(KeyError):
        one.take(Answered(1), CONTEXT)


@given(index=st.integers(0, 6))
def test_events_can_be_had_again_from_an_index_on(index: int) -> None:
    one = prefilled(max_tokens=9)
    reported = one.take(Answered(10), CONTEXT)
    for token in range(11, 14):
        one.next_token()
        reported += one.take(Answered(token), CONTEXT)
    reported += one.fail("answer_timeout", "late")
    again = list(one.events_from(index))
    assert again == [event for event in reported if getattr(event, "index", index) >= index]
    assert again[-1] == SessionFailed("s", "answer_timeout", "late")
