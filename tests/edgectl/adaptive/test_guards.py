"""Guard rails one by one, the order in which they stand, and what a move costs."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgectl.adaptive.guards import HORIZON_DECISIONS, Limits, Place, handover, judge
from edgectl.adaptive.link_view import LinkView
from rl.controller import Proposal

LINK = LinkView("a", "b", rtt_ms=10.0, goodput_bytes_per_s=1e6)
LIMITS = Limits(interval_tokens=10, dwell_tokens=20, move_weight=0.5)
FREE = Place(
    split=4,
    split_points=(2, 4, 8),
    source="a",
    peer="b",
    held="a holds layers [0, 8), b holds layers [2, 32)",
    handover=handover(LINK, 4, [100, 150], 1000),
    token_ms=50.0,
    remaining_tokens=30.0,
    is_idle=False,
)


def test_a_move_costs_keys_and_values_of_its_layers_over_the_link() -> None:
    assert FREE.handover.bytes == 4 * 250 * 1000
    assert FREE.handover.ms == 10.0 + 1000.0
    assert handover(LINK, 0, [5], 1000).ms == 0.0
    assert handover(LINK, 4, [], 1000).bytes == 0
    assert handover(replace(LINK, goodput_bytes_per_s=None), 1, [1], 1).ms is None
    # What the last move over it came to is known better.
    assert handover(LINK, 4, [100, 150], 1000, 2e6).ms == 10.0 + 500.0
    assert handover(replace(LINK, is_lower_bound=True), 4, [100, 150], 1000, 2e6).ms == 10.0 + 500.0
    # A link that never had more to carry may be quicker than it was seen to be.
    assert handover(replace(LINK, is_lower_bound=True), 1, [1], 1).ms is None


@pytest.mark.parametrize(
    ("change", "proposal", "guard", "reason"),
    [
        ({}, Proposal(4, 1.0, "flat"), "stay", "flat"),
        ({}, Proposal(16, 1.0), "not-resident", "a holds layers [0, 8)"),
        ({"full": "a takes 9 MiB"}, Proposal(8, 1.0), "memory", "a takes 9 MiB"),
        ({"suspected": ("b",)}, Proposal(8, 1.0), "suspected", "b was not heard"),
        ({"under_way": "micro-batch 3 moves"}, Proposal(8, 1.0), "under-way", "micro-batch 3 moves"),
        ({"back_off_tokens": 4.2, "kept_because": "late"}, Proposal(8, 1.0), "back-off", "(late); again in 5 tokens"),
        ({"since_move_tokens": 19.9}, Proposal(8, 1.0), "dwell", "it moved 19 tokens ago; 20 are waited"),
        ({}, Proposal(8, 0.1), "gain", "a gain of 0.1000 over 3.0 decisions does not pay for the move (1.010"),
        ({}, Proposal(8, float("nan")), "gain", "nan"),
        ({}, Proposal(8, 0.4, "better"), None, "better"),
        ({}, Proposal(8, None), None, "proposed"),
    ],
)
def test_each_guard_says_what_stands_against_a_move(
    change: dict[str, object], proposal: Proposal, guard: str | None, reason: str
) -> None:
    found, why = judge(proposal, replace(FREE, **change), LIMITS)  # type: ignore[arg-type]
    assert found == guard
    assert reason in why


def test_shadow_mode_holds_only_what_all_others_let_pass() -> None:
    shadow = replace(LIMITS, is_shadow=True)
    assert judge(Proposal(8, 0.4, "better"), FREE, shadow) == ("shadow", "shadow: better")
    assert judge(Proposal(16), FREE, shadow)[0] == "not-resident"


def test_before_a_session_begins_a_move_is_free_and_need_not_wait() -> None:
    idle = replace(FREE, is_idle=True, remaining_tokens=0.0, since_move_tokens=1.0)
    assert judge(Proposal(8, 0.001), idle, LIMITS)[0] is None
    assert judge(Proposal(8, 0.0), idle, LIMITS)[0] == "gain"


def test_a_cost_that_nobody_knows_stops_no_gain_and_a_loss_it_does() -> None:
    unknown = replace(FREE, handover=replace(FREE.handover, ms=None))
    assert judge(Proposal(8, 1e-6), unknown, LIMITS)[0] is None
    assert judge(Proposal(8, -1e-6), unknown, LIMITS)[0] == "gain"


@given(gain=st.floats(0.001, 2.0), remaining=st.floats(0.0, 1000.0), ms=st.floats(0.0, 1e5))
def test_a_move_pays_when_its_gain_until_the_end_or_the_horizon_is_more_than_its_cost(
    gain: float, remaining: float, ms: float
) -> None:
    place = replace(FREE, remaining_tokens=remaining, handover=replace(FREE.handover, ms=ms))
    expected = gain * min(remaining / 10, HORIZON_DECISIONS) > 0.5 * ms / (10 * 50.0)
    assert (judge(Proposal(8, gain), place, LIMITS)[0] is None) == expected
