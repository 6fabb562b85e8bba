"""A tensor's chunks: each is asked for once, unless given back; whoever holds the tensor is asked for the rest."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.fetch_state import ON_DISK, ItemState, PartState
from agent.wire.bulk import MAX_CHUNK_BYTES

CHUNK = MAX_CHUNK_BYTES


@given(st.integers(0, 5 * CHUNK), st.sets(st.integers(0, 5)))
def test_the_chunks_are_the_tensor_less_what_is_there(size_bytes: int, have: set[int]) -> None:
    item = ItemState.of(size_bytes, have)
    count = -(-size_bytes // CHUNK)
    asked = []
    while (chunk := item.next_chunk("a")) is not None:
        asked.append(chunk)
    expected = [(n * CHUNK, min(CHUNK, size_bytes - n * CHUNK)) for n in range(count) if n not in have]
    assert asked == expected
    assert item.missing == len(expected)
    assert (ON_DISK in item.contributors) == bool(have)


def test_one_source_holds_a_tensor_until_it_gives_a_chunk_back() -> None:
    item = ItemState.of(4 * CHUNK, ())
    assert item.next_chunk("a") == (0, CHUNK)
    assert item.next_chunk("b") is None
    assert item.next_chunk("a") == (CHUNK, CHUNK)
    item.put_back(0, "a")
    assert item.next_chunk("b") == (0, CHUNK)
    assert item.next_chunk("a") is None
    item.put_back(CHUNK, "a")  # late: the tensor stays with b
    assert item.next_chunk("c") is None
    assert item.next_chunk("b") == (CHUNK, CHUNK)


def test_chunks_come_in_order_though_they_were_given_back_in_another() -> None:
    item = ItemState.of(4 * CHUNK, ())
    for _ in range(3):
        item.next_chunk("a")
    for offset in (0, 2 * CHUNK, CHUNK):
        item.put_back(offset, "a")
    assert [item.next_chunk("a") for _ in range(4)] == [(n * CHUNK, CHUNK) for n in range(4)]


def test_a_source_that_was_too_slow_is_avoided() -> None:
    item = ItemState.of(CHUNK, ())
    item.avoided.add("a")
    assert item.next_chunk("a") is None
    assert item.next_chunk("b") == (0, CHUNK)


def test_a_tensor_that_does_not_match_starts_over_and_says_who_gave_it() -> None:
    item = ItemState.of(2 * CHUNK, ())
    item.next_chunk("b")
    item.contributors |= {"b", "a"}
    item.missing = 0
    assert item.start_over() == ["a", "b"]
    assert (item.missing, item.owner, item.contributors, item.tries) == (2, None, set(), 1)


def test_a_part_takes_away_what_is_not_all_asked_for() -> None:
    open_item, asked_item = ItemState.of(2 * CHUNK, ()), ItemState.of(CHUNK, ())
    open_item.next_chunk("a")
    asked_item.next_chunk("a")
    part = PartState(items={"x": open_item, "y": asked_item})
    part.disown("b")
    assert (open_item.owner, asked_item.owner) == ("a", "a")
    part.disown("a")
    assert (open_item.owner, asked_item.owner) == (None, "a")
