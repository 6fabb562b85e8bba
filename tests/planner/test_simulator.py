"""What the simulator lets happen: one thing at a time, in order; disturbances are seeded and cost what they must."""

from __future__ import annotations

import random
from collections import defaultdict
from itertools import pairwise

import pytest

from planner.pipeline import PipelineTimes, no_bubbles_rate
from planner.simulator import MAX_INTERVALS, Disturbance, Interval, SimulatedRun, simulate

TIMES = PipelineTimes((3.0, 8.0, 2.0), (1.5, 4.0), (0.5, 0.25), 0.75)
ROUGH = Disturbance(compute_spread=0.5, jitter_ms=2.0, loss=0.2, retransmission_ms=20.0, seed=3)


def check(run: SimulatedRun, times: PipelineTimes, micro_batches: int, rounds: int, bubbles: bool) -> None:
    stages = len(times.compute_ms)
    assert len(run.intervals) == micro_batches * rounds * (2 * stages - 1)
    by_server: defaultdict[object, list[Interval]] = defaultdict(list)
    by_micro_batch: defaultdict[int, list[Interval]] = defaultdict(list)
    for interval in run.intervals:
        assert interval.arrival_ms <= interval.start_ms <= interval.stop_ms
        owner = times.servers[interval.place] if times.servers and interval.kind == "stage" else interval.place
        by_server[interval.kind, owner].append(interval)
        by_micro_batch[interval.micro_batch].append(interval)
    for served in by_server.values():
        for before, after in pairwise(sorted(served, key=lambda interval: (interval.start_ms, interval.stop_ms))):
            assert after.start_ms >= before.stop_ms, "a server did two things at once"
    places = [(kind, place) for place in range(stages) for kind in ("stage", "link")][:-1]
    for steps in by_micro_batch.values():
        assert [(each.kind, each.place) for each in steps] == places * rounds
        assert all(after.arrival_ms >= before.stop_ms for before, after in pairwise(steps))
    if bubbles:
        last = [max(each.stop_ms for each in run.intervals if each.step == step) for step in range(rounds)]
        first = [min(each.start_ms for each in run.intervals if each.step == step) for step in range(rounds)]
        assert all(start >= stop for start, stop in zip(first[1:], last[:-1], strict=True))


@pytest.mark.parametrize("bubbles", [False, True])
@pytest.mark.parametrize("disturbance", [None, ROUGH], ids=["calm", "rough"])
@pytest.mark.parametrize("servers", [(), ("a", "b", "a")], ids=["own", "shared"])
def test_a_server_does_one_thing_at_a_time_and_a_micro_batch_goes_in_order(bubbles, disturbance, servers):
    times = PipelineTimes(TIMES.compute_ms, TIMES.transfer_ms, TIMES.latency_ms, TIMES.return_ms, servers)
    run = simulate(times, 4, 9, bubbles=bubbles, disturbance=disturbance)
    check(run, times, 4, 9, bubbles)


def test_shares_and_waits_of_a_pipeline_with_one_bottleneck():
    run = simulate(TIMES, 5, 40)
    assert run.rate_tokens_per_s == pytest.approx(1e3 / 8)
    assert run.stage_busy == pytest.approx((3 / 8, 1, 2 / 8))
    assert run.link_busy == pytest.approx((1.5 / 8, 4 / 8))
    # A round takes 40 ms at the bottleneck's pace and 20 ms alone: the rest is waiting there.
    assert run.stage_wait_ms == pytest.approx((0, 5 * 8 - TIMES.round_ms, 0))


def test_rows_scale_tokens_only():
    assert simulate(TIMES, 2, 6, rows=3).rate_tokens_per_s == pytest.approx(
        3 * simulate(TIMES, 2, 6).rate_tokens_per_s, rel=1e-12
    )


def test_a_seed_gives_one_run_and_another_seed_another():
    runs = [simulate(TIMES, 3, 10, disturbance=Disturbance(0.3, 1.0, 0.1, seed=seed)) for seed in (1, 1, 2)]
    assert runs[0] == runs[1]
    assert runs[0].makespan_ms != runs[2].makespan_ms


def test_a_loss_costs_a_time_out_and_a_transmission_on_average():
    loss, time_out_ms, rounds = 0.3, 5.0, 20_000
    run = simulate(TIMES, 1, rounds, disturbance=Disturbance(loss=loss, retransmission_ms=time_out_ms, seed=5))
    lost = loss / (1 - loss)
    expected_ms = TIMES.round_ms + lost * (sum(TIMES.transfer_ms) + 3 * time_out_ms)
    assert 1e3 / run.rate_tokens_per_s == pytest.approx(expected_ms, rel=0.02)


def test_jitter_delays_every_latency_by_its_mean():
    run = simulate(TIMES, 1, 20_000, disturbance=Disturbance(jitter_ms=4.0, seed=6))
    assert 1e3 / run.rate_tokens_per_s == pytest.approx(TIMES.round_ms + 3 * 4.0, rel=0.02)


def test_disturbances_never_beat_the_calm_bottleneck_for_long():
    draw = random.Random(7)
    for seed in range(20):
        micro_batches = draw.randint(1, 6)
        calm = no_bubbles_rate(TIMES, micro_batches, 1)
        rough = simulate(TIMES, micro_batches, 400, disturbance=Disturbance(0.4, 1.0, 0.05, seed=seed))
        assert rough.rate_tokens_per_s <= calm * 1.03


def test_one_stage_has_no_link_and_loses_nothing():
    run = simulate(PipelineTimes((5.0,)), 3, 4, disturbance=Disturbance(jitter_ms=9.0, loss=0.9))
    assert run.rate_tokens_per_s == pytest.approx(200)
    assert (run.link_busy, run.stage_busy, run.makespan_ms) == ((), (1.0,), 60.0)


@pytest.mark.parametrize(("micro_batches", "rounds"), [(0, 5), (1, 1), (1, MAX_INTERVALS)])
def test_runs_that_show_nothing_or_too_much_are_refused(micro_batches, rounds):
    with pytest.raises(ValueError, match="rounds"):
        simulate(TIMES, micro_batches, rounds)


@pytest.mark.parametrize("bad", [{"loss": 1.0}, {"compute_spread": 1.0}, {"jitter_ms": -1.0}, {"loss": -0.1}])
def test_disturbances_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        Disturbance(**bad)
