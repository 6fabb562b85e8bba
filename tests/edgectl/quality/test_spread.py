"""A grid over devices in memory: who measures what, and that nothing is lost or measured twice whatever they do."""

from __future__ import annotations

import math
import random

import pytest

from agent.wire.measure_messages import MAX_MEASURE_S, MeasureProgress, QualityMeasured
from agent.wire.messages import (
    PROTOCOL_VERSION,
    CoordinatorAlive,
    Failed,
    Heartbeat,
    LoadProgress,
    Rejected,
    Unload,
    Welcome,
    WorkerHello,
    WorkerRestarted,
)
from edgectl.effects import Send
from edgectl.quality.spread import (
    PATIENCE_S,
    STRIKES,
    Inbound,
    units_of,
)
from tests.fakes.quality_devices import RUNS, Bench, hello


def test_units_are_of_one_split_and_not_too_long() -> None:
    units = units_of(RUNS, 4)
    assert [(unit.split, len(unit.runs)) for unit in units] == [(1, 4), (1, 2), (4, 4), (4, 2), (31, 4), (31, 2)]
    assert [run for unit in units for run in unit.runs] == RUNS


def test_everybody_is_waited_for_then_work_is_shared() -> None:
    bench = Bench(("a", "b", "c"))
    bench.connect("a")
    assert not bench.asked
    bench.connect("b", "c")
    assert {name: request.split for name, (request, _) in bench.asked.items()} == {"a": 1, "b": 4, "c": 31}
    bench.run()
    bench.check_complete()
    assert {each.device for each in bench.measured} == {"a", "b", "c"}
    assert sum(isinstance(e, Send) and isinstance(e.message, Unload) for e in bench.effects) == 3


def test_a_quick_device_does_more() -> None:
    bench = Bench(most_runs=2)
    bench.connect()
    bench.answer("a", 10)
    bench.answer("b", 2)
    bench.run()
    bench.check_complete()
    assert sum(each.device == "a" for each in bench.measured) > 10


def test_one_that_does_not_come_is_not_waited_for_for_ever_and_may_join_later() -> None:
    bench = Bench()
    bench.connect("a")
    bench.tick(9.0, "a")
    assert not bench.asked
    bench.tick(2.0, "a")
    assert set(bench.asked) == {"a"}
    bench.connect("b")
    assert set(bench.asked) == {"a", "b"}
    bench.run()
    bench.check_complete()


def test_a_device_that_is_lost_amid_its_work_leaves_the_rest_to_others() -> None:
    bench = Bench()
    bench.connect()
    bench.answer("b", 2)
    bench.asked.pop("b")
    bench.tick(9.0, "a")
    assert "b is lost; others go on with its work" in bench.notices()
    bench.run()
    bench.check_complete()


def test_a_device_that_restarts_begins_again_where_it_was() -> None:
    bench = Bench(("a",))
    bench.connect()
    bench.answer("a", 2)
    bench.asked.clear()
    bench.say("a", WorkerRestarted("killed", "tcp://h:2", "worker-1"))
    assert len(bench.asked["a"][0].channels) == 4
    old = bench.asked["a"][0].request - 1
    bench.say("a", QualityMeasured(old, 2, 1.0))
    assert len(bench.measured) == 2, "an answer to the request before"
    bench.connect(life=2)
    while bench.asked:
        bench.answer("a", life=2)
    bench.check_complete()


def test_three_failures_without_a_result_are_enough() -> None:
    bench = Bench()
    bench.connect()
    for life in range(1, STRIKES + 2):
        bench.asked.pop("b", None)
        bench.connect("b", life=life)
    assert "b" in bench.spread.problems
    assert "b" not in bench.asked
    bench.run()
    bench.check_complete()


def test_failures_with_results_between_them_are_not_counted_together() -> None:
    bench = Bench()
    bench.connect()
    for life in range(1, STRIKES + 2):
        bench.connect("b", life=life)
        bench.answer("b", life=life)
    assert not bench.spread.problems


@pytest.mark.parametrize(
    "message",
    [
        Failed("measure-quality", "model_not_found", "b: no such model"),
        QualityMeasured(2, 1, 40.0),
        QualityMeasured(2, 0, 0.0),
        QualityMeasured(2, 0, -math.inf),
    ],
)
def test_one_that_refuses_or_answers_nonsense_is_left_out(message: Inbound) -> None:
    bench = Bench()
    bench.connect()
    assert bench.asked["b"][0].request == 2
    bench.asked.pop("b")
    bench.say("b", message)
    assert "b is left out" in bench.notices()
    assert "b" not in bench.asked
    bench.run()
    bench.check_complete()


def test_no_number_is_an_answer() -> None:
    bench = Bench()
    bench.connect()
    bench.say("a", QualityMeasured(1, 0, math.nan))
    bench.say("a", QualityMeasured(1, 1, math.inf))
    values = [each.measurement.perplexity for each in bench.measured]
    assert math.isnan(values[0])
    assert values[1] == math.inf
    assert not bench.spread.problems


def test_bytes_that_are_no_message_end_it_for_one_that_works() -> None:
    bench = Bench()
    bench.connect()
    assert bench.take(bench.spread.on_bad_message(b"stranger", "b", "no", 0.0)) == []
    assert bench.take(bench.spread.on_bad_message(b"x", "nobody", "no", 0.0)) == []
    bench.asked.pop("b")
    bench.take(bench.spread.on_bad_message(b"b:0", "b", "kind 'x'", 0.0))
    assert "b is left out: answered nonsense: kind 'x'" in bench.notices()
    bench.run()
    bench.check_complete()


def test_silence_about_the_work_ends_it_and_progress_does_not() -> None:
    bench = Bench()
    bench.connect()
    for _ in range(3):
        bench.tick(PATIENCE_S - 10.0, "a", "b")
        bench.say("a", MeasureProgress("perplexity", 1, 2))
        bench.say("a", LoadProgress("m", 1, 2))
    assert set(bench.spread.problems) == {"b"}
    assert "said nothing for 120 s" in bench.spread.problems["b"]


def test_even_progress_comes_to_an_end() -> None:
    bench = Bench(("a",))
    bench.connect()
    while bench.now < MAX_MEASURE_S + 2.0:
        bench.tick(60.0, "a")
        bench.say("a", MeasureProgress("perplexity", 1, 2))
    assert "was not done after 3600 s" in bench.spread.problems["a"]


def test_when_nobody_is_left_it_ends_and_says_how_much_is_missing() -> None:
    bench = Bench()
    bench.tick(11.0)
    assert bench.spread.is_finished
    assert bench.spread.left == len(RUNS)
    bench = Bench()
    bench.connect()
    bench.answer("a", 1)
    for name in ("a", "b"):
        bench.say(name, Failed("measure-quality", "out_of_memory", f"{name}: no room"))
    assert bench.spread.is_finished, "at once: nobody else may come"
    assert bench.spread.left == len(RUNS) - 1
    assert bench.spread.problems == {"a": "a: no room", "b": "b: no room"}


def test_strangers_and_others() -> None:
    bench = Bench()
    refused = bench.spread.on_message(b"x", "nobody", hello("nobody"), 0.0)
    assert isinstance(refused[0], Send)
    assert isinstance(refused[0].message, Rejected)
    bench.say("a", hello("a", protocol=PROTOCOL_VERSION + 1))
    assert "speaks protocol" in bench.spread.problems["a"]
    assert [e.message for e in bench.say("b", WorkerHello(PROTOCOL_VERSION, "b")) if isinstance(e, Send)] == [
        CoordinatorAlive()
    ]
    bench.connect("b")
    assert set(bench.asked) == {"b"}, "one that was refused is not waited for"
    (sent,) = bench.say("b", Heartbeat(1), life=9)
    assert isinstance(sent, Send)
    assert isinstance(sent.message, Rejected)
    again = bench.say("b", hello("b"), life=5)
    assert isinstance(again[0], Send)
    assert isinstance(again[0].message, Welcome)
    assert len(bench.asked) == 1, "the same worker over a new connection goes on"


@pytest.mark.parametrize("seed", range(30))
def test_whatever_happens_every_run_is_measured_once(seed: int) -> None:
    """Devices that answer, restart, fall silent and come back at random; one never fails."""
    rng = random.Random(seed)
    bench = Bench(("a", "b", "c"), most_runs=rng.choice([1, 2, 5, 64]))
    lives = dict.fromkeys(bench.devices, 0)
    bench.connect()
    for _ in range(400):
        name = rng.choice(bench.devices)
        chance = rng.random()
        if name != "a" and chance < 0.1:
            lives[name] += 1
            bench.connect(name, life=lives[name])
        elif name != "a" and chance < 0.13:
            bench.asked.pop(name, None)
            bench.say(name, Failed("measure-quality", "x", "no"), lives[name])
        elif chance < 0.2:
            bench.now += 5.0
            for other, life in lives.items():
                if other == "a" or rng.random() < 0.5:
                    bench.say(other, Heartbeat(1), life)
            bench.lose_the_silent()
        elif name in bench.asked:
            bench.answer(name, life=lives[name])
        if bench.spread.is_finished:
            break
    while "a" in bench.asked:
        bench.answer("a")
        for name in ("b", "c"):
            while name in bench.asked:
                bench.answer(name, life=lives[name])
    bench.check_complete()
