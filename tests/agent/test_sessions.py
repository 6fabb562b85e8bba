"""A session's states, its chunks and its events, without any stage."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.sessions import TRANSITIONS, Happened, Session, SessionState, chunk_lengths
from agent.wire.codec import Answered
from agent.wire.messages import SessionEnded, SessionFailed, TokenEvent
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
