"""The ledger against a set of (layer, token) per row."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.wire.ledger import Ledger

LAYERS = 8
START, STOP = 2, 6
RANGES = st.tuples(st.integers(0, LAYERS), st.integers(0, LAYERS)).map(sorted)
STEPS = st.lists(
    st.tuples(st.sampled_from(["ran", "copied", "clear"]), st.integers(0, 1), RANGES, st.integers(0, 9)), max_size=30
)


@given(STEPS)
def test_it_says_what_was_entered(steps: list[tuple[str, int, list[int], int]]) -> None:
    ledger = Ledger(2, START, STOP)
    has: list[list[set[int]]] = [[set() for _ in range(LAYERS)] for _ in range(2)]
    for what, row, (start, stop), tokens in steps:
        if what == "clear":
            ledger.clear(row)
            has[row] = [set() for _ in range(LAYERS)]
        elif what == "ran":
            ledger.ran(row, start, stop, tokens)
            for layer in range(start, stop):
                has[row][layer] = set(range(tokens))
        else:
            ledger.copied(row, start, stop, tokens)
            for layer in range(start, stop):
                has[row][layer] |= set(range(tokens))
        for at in range(2):
            for first in range(START, STOP):
                for end in range(first + 1, STOP + 1):
                    held = min(len(has[at][layer]) for layer in range(first, end))
                    assert ledger.holds(at, first, end) == held
                    assert ledger.lacks(at, first, end, held + 1)
                    assert not ledger.lacks(at, first, end, held)


def test_other_layers_count_as_complete() -> None:
    ledger = Ledger(1, START, STOP)
    assert not ledger.lacks(0, 0, START, 5)
    assert not ledger.lacks(0, STOP, 1 << 30, 5)
    assert ledger.lacks(0, 0, START + 1, 5)
