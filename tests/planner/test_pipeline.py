"""Closed forms of pipeline rates against the simulator, and their order, on random pipelines."""

from __future__ import annotations

import random

import pytest

from planner.pipeline import PipelineTimes, bubbles_rate, no_bubbles_rate, sequential_rate
from planner.simulator import simulate


def random_times(draw: random.Random, *, shared: bool = False) -> PipelineTimes:
    stages = draw.randint(1, 7)
    scale = 10 ** draw.uniform(-2, 3)
    links = [scale * draw.choice([0.01, 0.3, 2]) * draw.random() for _ in range(stages - 1)]
    return PipelineTimes(
        compute_ms=tuple(scale * (0.05 + draw.random()) for _ in range(stages)),
        transfer_ms=tuple(links),
        latency_ms=tuple(draw.choice([0.0, scale]) * draw.random() for _ in range(stages - 1)),
        return_ms=scale * draw.random() if stages > 1 else 0.0,
        servers=tuple(draw.choice("abc") for _ in range(stages)) if shared else (),
    )


def test_closed_forms_are_what_the_simulator_plays():
    draw = random.Random(9)
    worst = 0.0
    for _ in range(300):
        times, micro_batches, rows = random_times(draw), draw.randint(1, 10), draw.randint(1, 4)
        for bubbles, rate in [(False, no_bubbles_rate), (True, bubbles_rate)]:
            played = simulate(times, micro_batches, 8, rows=rows, bubbles=bubbles).rate_tokens_per_s
            claimed = rate(times, micro_batches, rows)
            worst = max(worst, abs(played / claimed - 1))
    assert worst <= 1e-9


def test_with_shared_servers_the_closed_form_without_bubbles_is_an_upper_bound():
    draw = random.Random(10)
    reached = 0
    for _ in range(300):
        times, micro_batches, rounds = random_times(draw, shared=True), draw.randint(1, 8), 12
        bound = no_bubbles_rate(times, micro_batches, 1)
        # Counted from the start: no server can have done more work, no micro-batch more rounds, than time allows.
        run = simulate(times, micro_batches, rounds)
        assert 1e3 * micro_batches * rounds / run.makespan_ms <= bound * (1 + 1e-9)
        reached += run.rate_tokens_per_s >= bound * (1 - 1e-9)
    assert reached > 100, "the bound should often be tight"


def test_first_come_first_served_may_miss_the_bound_of_a_shared_server():
    """And a barrier may cost less than its form says: the server begins others before it returns to a micro-batch."""
    times = PipelineTimes((1.0, 3.0, 4.0), (0.0, 0.0), (0.0, 0.0), servers=("a", "b", "a"))
    assert simulate(times, 2, 60).rate_tokens_per_s == pytest.approx(5 / 6 * no_bubbles_rate(times, 2, 1))
    played = simulate(times, 2, 60, bubbles=True).rate_tokens_per_s
    assert played == pytest.approx(13 / 12 * bubbles_rate(times, 2, 1))


def test_stages_in_a_row_on_one_server_are_one_stage():
    apart = PipelineTimes((2.0, 3.0, 4.0), (0.0, 1.0), (0.0, 0.5), 0.25, servers=("a", "a", "b"))
    joined = PipelineTimes((5.0, 4.0), (1.0,), (0.5,), 0.25)
    assert apart.bottleneck_ms == joined.bottleneck_ms == 5
    assert no_bubbles_rate(apart, 3, 2) == no_bubbles_rate(joined, 3, 2)


def test_order_of_the_rates():
    draw = random.Random(11)
    for _ in range(300):
        times, micro_batches = random_times(draw), draw.randint(1, 12)
        without, barrier = no_bubbles_rate(times, micro_batches, 1), bubbles_rate(times, micro_batches, 1)
        assert sequential_rate(times, 1) <= barrier * (1 + 1e-12)
        assert barrier <= without * (1 + 1e-12)
        assert without <= barrier * (2 - 1 / micro_batches) * (1 + 1e-12)
        assert without <= no_bubbles_rate(times, micro_batches + 1, 1) * (1 + 1e-12)


def test_fewer_micro_batches_than_stages_leave_the_ring_as_the_limit():
    """E9: equation 9 of EdgeShard takes the slowest server alone; three micro-batches cannot fill four stages."""
    times = PipelineTimes((10.0,) * 4, (0.0,) * 3, (0.0,) * 3)
    assert no_bubbles_rate(times, 3, 1) == 75
    assert no_bubbles_rate(times, 4, 1) == no_bubbles_rate(times, 9, 1) == 100


@pytest.mark.parametrize(
    "arguments",
    [((),), ((1.0,), (2.0,)), ((1.0, 2.0), (0.0,)), ((1.0,), (), (), 0.0, ("a", "b"))],
    ids=["no stage", "a link too many", "a latency too few", "a server too many"],
)
def test_lengths_that_disagree_are_refused(arguments):
    with pytest.raises(ValueError, match="stages with"):
        PipelineTimes(*arguments)
