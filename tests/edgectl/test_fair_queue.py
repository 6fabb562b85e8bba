"""Turns of keys, deadlines within a key; and as a property: nobody is lost, and nobody is passed over twice."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from edgectl.fair_queue import FairQueue


def test_keys_take_turns_and_deadlines_decide_within_one() -> None:
    queue: FairQueue[str] = FairQueue()
    for key, due_s, name in (("a", 3.0, "a3"), ("a", 1.0, "a1"), ("b", 9.0, "b9"), ("a", 1.0, "a1 again")):
        queue.put(key, due_s, name, name)
    assert queue.by_key() == {"a": 3, "b": 1}
    assert queue.names() == ["a1", "a1 again", "a3", "b9"]
    assert queue.drain() == ["a1", "b9", "a1 again", "a3"]
    assert (len(queue), queue.pop(), queue.by_key()) == (0, None, {})


def test_who_leaves_is_gone() -> None:
    queue: FairQueue[int] = FairQueue()
    for number in range(3):
        queue.put("k", 0.0, str(number), number)
    assert queue.remove("1") == 1
    assert queue.remove("1") is None
    assert queue.drain() == [0, 2]


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("put"), st.sampled_from("abc"), st.integers(0, 5)),
            st.tuples(st.just("pop")),
            st.tuples(st.just("remove"), st.integers(0, 30)),
        ),
        max_size=60,
    )
)
def test_everybody_comes_once_by_deadline_and_no_key_waits_for_two_turns_of_another(
    steps: list[tuple[object, ...]],
) -> None:
    queue: FairQueue[tuple[str, int, int]] = FairQueue()
    waiting: dict[str, tuple[str, int, int]] = {}
    turns: dict[str, Counter[str]] = {}
    """For each key that waits: how often each other key had its turn meanwhile."""
    for number, step in enumerate(steps):
        if step[0] == "put":
            key, due = str(step[1]), int(str(step[2]))
            item = (key, due, number)
            queue.put(key, due, str(number), item)
            waiting[str(number)] = item
            turns.setdefault(key, Counter())
        elif step[0] == "remove":
            assert queue.remove(str(step[1])) == waiting.pop(str(step[1]), None)
        else:
            found = queue.pop()
            if not waiting:
                assert found is None
                continue
            assert found is not None
            assert found == min(item for item in waiting.values() if item[0] == found[0])
            del waiting[str(found[2])]
            turns.pop(found[0], None)
            for others in turns.values():
                others[found[0]] += 1
                assert others[found[0]] == 1, "a key had two turns while another one waited"
        keys = {item[0] for item in waiting.values()}
        turns = {key: turns.get(key, Counter()) for key in keys}
        assert queue.by_key() == Counter(item[0] for item in waiting.values())
    assert sorted(queue.drain()) == sorted(waiting.values())
