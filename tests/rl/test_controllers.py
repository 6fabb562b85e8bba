"""Controllers that need no learning."""

from __future__ import annotations

import time

import numpy as np
import pytest

from rl.authors_table import authors_gain
from rl.channel import m_of_loss
from rl.controller import Controller, Observation, Proposal
from rl.controllers import (
    DpController,
    GreedyController,
    HysteresisController,
    PlannerController,
    RandomController,
    StaticController,
)
from rl.harder_world import HarderWorld
from rl.optimal import solve
from rl.rollout import Starts, at_random, by, play
from rl.split_costs import SplitCosts
from rl.split_world import ACTIONS_9, AuthorsWorld, ChannelWorld

SPLITS = tuple(range(1, 11))


def greedy(moves: tuple[int, ...] | None = None) -> GreedyController:
    return GreedyController(authors_gain(), SPLITS, moves=moves)


def all_of_them() -> list[Controller]:
    return [
        StaticController(4, SPLITS),
        RandomController(SPLITS, ACTIONS_9, np.random.default_rng(0)),
        greedy(),
        HysteresisController(greedy(), 0.05),
        DpController(solve(AuthorsWorld(authors_gain()))),
        PlannerController(SplitCosts.of_edgeshard(SPLITS)),
    ]


@pytest.mark.parametrize("controller", all_of_them(), ids=lambda controller: controller.name)
def test_they_propose_splits_they_know_and_refuse_others(controller: Controller) -> None:
    for loss in np.linspace(0, 0.4, 9):
        for split in SPLITS:
            assert controller.propose(Observation(split, loss=float(loss))).split in controller.splits
    with pytest.raises(ValueError, match="none of 1, 2"):
        controller.propose(Observation(12, loss=0.1))


@pytest.mark.parametrize("controller", [greedy(), HysteresisController(greedy(), 0.0), *all_of_them()[4:5]])
def test_what_is_not_known_moves_nothing(controller: Controller) -> None:
    assert controller.propose(Observation(3)) == Proposal(3, None, "loss is not known")


def test_greedy_is_the_argmax_of_the_table() -> None:
    assert greedy().propose(Observation(5, loss=0.05)).split == 1
    high = greedy().propose(Observation(5, loss=0.3))
    assert high.split == 7
    assert high.gain == pytest.approx(10 * (0.045 - 0.012) - 0.2)
    assert greedy().propose(Observation(7, loss=0.3)) == Proposal(
        7, 0.0, "no split in reach is worth more at loss 0.300"
    )


def test_greedy_with_few_moves_stays_on_a_hill() -> None:
    assert greedy((-1, 0, 1)).propose(Observation(7, loss=0.2)).split in (6, 7, 8)
    assert greedy((-1, 0, 1)).propose(Observation(2, loss=0.2)).split == 1


def test_hysteresis_waits_for_the_margin() -> None:
    gain = greedy().propose(Observation(5, loss=0.3)).gain
    assert gain is not None
    assert HysteresisController(greedy(), gain - 1e-9).propose(Observation(5, loss=0.3)).split == 7
    kept = HysteresisController(greedy(), gain).propose(Observation(5, loss=0.3))
    assert (kept.split, kept.reason) == (5, f"{gain:.3f} does not exceed the margin of {gain:g}")


def test_dp_looks_beyond_the_next_step_where_greedy_does_not() -> None:
    world = AuthorsWorld(authors_gain())
    starts = Starts.drawn(world, 300, seed=0)
    near = play(world, by(GreedyController(authors_gain(), SPLITS, moves=ACTIONS_9)), starts).returns.mean()
    far = play(world, by(DpController(solve(world))), starts).returns.mean()
    chance = play(world, at_random(np.random.default_rng(0)), starts).returns.mean()
    assert chance < near < far


def test_dp_reads_the_shape_off_the_loss_where_only_that_is_seen() -> None:
    controller = DpController(solve(ChannelWorld(authors_gain()), points=31))
    for loss in (0.02, 0.1, 0.28):
        by_m = controller.propose(Observation(5, loss=loss, sigma=0.0, m=float(m_of_loss(loss))))
        assert controller.propose(Observation(5, loss=loss, sigma=0.0)) == by_m
    assert controller.propose(Observation(5, loss=0.9)).split in SPLITS
    assert controller.propose(Observation(5, loss=0.0)).split in SPLITS


def test_dp_says_what_its_plan_is_worth_per_decision() -> None:
    # From split 7 to 1 where hardly anything is lost takes two moves; f at 7, 5 and 1 is 0.010, -0.011 and -0.030.
    proposal = DpController(solve(AuthorsWorld(authors_gain()))).propose(Observation(7, loss=0.01))
    stay, step, there = 10 * 0.010 + 0.3, 10 * -0.011 + 0.5, 10 * -0.030 + 0.9
    assert proposal.split == 5
    assert proposal.gain == pytest.approx((step + 4 * there) / 5 - stay, abs=2e-3)


def test_dp_in_the_harder_world_sees_no_trend_and_still_beats_chance() -> None:
    world = HarderWorld(authors_gain())
    starts = Starts.drawn(world, 50, seed=0)
    planned = play(world, by(DpController(solve(world, points=40))), starts).returns.mean()
    assert planned > play(world, at_random(np.random.default_rng(0)), starts).returns.mean() + 1.0


def test_the_planner_takes_the_quickest_split_and_the_radio_changes_nothing() -> None:
    costs = SplitCosts.of_edgeshard(SPLITS)
    controller = PlannerController(costs)
    for goodput in (None, 1e5, 1e9):
        for loss in (None, 0.3):
            seen = Observation(9, loss=loss, rtt_ms=30.0, goodput_bytes_per_s=goodput)
            assert controller.propose(seen).split == SPLITS[int(np.argmin(costs.device_ms))]
    assert "ms per token is the least" in controller.propose(Observation(1)).reason


def test_a_decision_takes_less_than_a_millisecond() -> None:
    seen = Observation(5, loss=0.123, sigma=0.0, m=1.0, goodput_bytes_per_s=1e6)
    for controller in all_of_them():
        times = []
        for _ in range(30):
            began = time.perf_counter()
            controller.propose(seen)
            times.append(time.perf_counter() - began)
        assert min(times) < 1e-3, controller.name
