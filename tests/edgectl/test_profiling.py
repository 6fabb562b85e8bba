"""The order of measurements, and what becomes of devices that are late, lost, wrong or broken."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.wire.measure_messages import DeviceMeasured, LinkMeasured, MeasureDevice, MeasureLink, MeasureProgress
from agent.wire.messages import (
    PROTOCOL_VERSION,
    CoordinatorAlive,
    Failed,
    Rejected,
    Welcome,
    WorkerHello,
    WorkerRestarted,
)
from edgectl.effects import Notice
from edgectl.measurements import Task
from edgectl.profiling import LONGEST_S, PATIENCE_S, Advanced, Ended, Finished, Planned
from planner.profile import DecodePoint, HeadPoint, Timing
from tests.fakes.measured_devices import Bench, device_profile, link_profile

APART = {"a": "boot-a", "b": "boot-b", "c": "boot-c"}
TOGETHER = dict.fromkeys("abc", "boot")


def test_devices_of_different_hosts_are_measured_at_the_same_time_and_links_after_them() -> None:
    bench = Bench(APART)
    bench.connect()
    assert bench.running == {Task("a"), Task("b"), Task("c")}
    bench.answer()
    bench.answer()
    assert bench.running == {Task("c")}
    bench.answer()
    assert bench.running == {Task("a", "b")}
    bench.run()
    assert set(bench.profiling.profiles) == {"a", "b", "c"}
    assert len(bench.profiling.links) == 6
    assert bench.profiling.is_finished
    assert isinstance(bench.effects[-1], Finished)


def test_devices_of_one_host_are_measured_one_after_another_in_the_order_of_the_cluster() -> None:
    bench = Bench(TOGETHER)
    bench.connect("c", "b", "a")
    order = []
    while bench.asked:
        assert len(bench.asked) == 1
        name, request = bench.asked[0]
        order.append(name if isinstance(request, MeasureDevice) else f"{name}{request.peer}")
        bench.answer()
    assert order == ["a", "b", "c", "ab", "ac", "ba", "bc", "ca", "cb"]


def test_links_that_share_no_host_run_at_the_same_time() -> None:
    bench = Bench({name: f"boot-{name}" for name in "abcd"})
    bench.connect()
    for _ in range(4):
        bench.answer()
    assert bench.running == {Task("a", "b"), Task("c", "d")}


def test_names_and_hosts_are_those_of_key_and_hello_not_what_the_answer_says() -> None:
    bench = Bench(APART)
    bench.connect()
    bench.run()
    assert {name: (p.name, p.host) for name, p in bench.profiling.profiles.items()} == {
        name: (name, host) for name, host in APART.items()
    }
    assert all((link.source, link.destination) == pair for pair, link in bench.profiling.links.items())


def test_a_request_carries_what_the_device_needs() -> None:
    bench = Bench({"a": "x", "b": "y"})
    bench.connect()
    _, request = bench.asked[0]
    assert isinstance(request, MeasureDevice)
    assert (request.model, request.quantization, request.block_size, request.seconds) == ("m", "int4", 32, 10.0)
    bench.answer()
    bench.answer()
    _, link = bench.asked[0]
    assert isinstance(link, MeasureLink)
    assert (link.peer, link.endpoint, link.key) == ("b", "tcp://b:1", "key-b")
    assert link.sizes[0] == (1, 64)


def test_every_device_is_welcomed_with_its_peers_and_workers_are_kept_alive() -> None:
    bench = Bench(APART)
    bench.connect()
    welcome = next(send.message for send in bench.sent if send.origin == b"a:0" and isinstance(send.message, Welcome))
    assert [(peer.device, peer.key) for peer in welcome.peers] == [("b", "key-b"), ("c", "key-c")]
    bench.say("a", WorkerHello(PROTOCOL_VERSION, "a"))
    assert isinstance(bench.sent[-1].message, CoordinatorAlive)


@pytest.mark.parametrize(
    ("said", "code"), [({"protocol": PROTOCOL_VERSION + 1}, "version_mismatch"), ({"name": "b"}, "not_authorized")]
)
def test_who_is_not_admitted_is_told_so_and_named(said: dict[str, object], code: str) -> None:
    bench = Bench(APART)
    hello = bench.hello(str(said.get("name", "a")), protocol=int(str(said.get("protocol", PROTOCOL_VERSION))))
    bench.say("a", hello)
    refused = bench.sent[-1].message
    assert isinstance(refused, Rejected)
    assert refused.code == code
    bench.connect("b", "c")
    bench.tick(11, "b", "c")
    bench.run()
    assert refused.detail in bench.profiling.problems["a"]
    assert set(bench.profiling.profiles) == {"b", "c"}


def test_a_stranger_is_refused() -> None:
    bench = Bench(APART)
    (send,) = bench.profiling.on_message(b"x", "z", bench.hello("a"), 0.0)
    assert isinstance(getattr(send, "message", None), Rejected)


def test_devices_that_do_not_come_are_named_and_left_out() -> None:
    bench = Bench(APART, wait_s=10.0)
    bench.connect("a")
    bench.tick(5, "a")
    bench.connect("b")
    bench.tick(9, "a", "b")
    assert not bench.asked
    bench.tick(2, "a", "b")
    planned = next(effect for effect in bench.effects if isinstance(effect, Planned))
    assert planned.tasks == (Task("a"), Task("b"), Task("a", "b"), Task("b", "a"))
    assert any(isinstance(effect, Notice) and effect.detail.startswith("c: ") for effect in bench.effects)
    bench.run()
    assert bench.profiling.problems == {"c": "not connected"}


def test_nobody_comes() -> None:
    bench = Bench(APART, wait_s=3.0)
    bench.tick(4)
    assert bench.profiling.is_finished
    assert set(bench.profiling.problems) == set(APART)


def test_a_device_that_cannot_measure_costs_its_own_links_only() -> None:
    bench = Bench(TOGETHER)
    bench.connect()
    bench.refuse("12 MiB short")
    bench.run()
    problems = bench.profiling.problems
    assert problems["a"] == "a: 12 MiB short"
    assert set(problems) == {"a", "a → b", "a → c", "b → a", "c → a"}
    assert set(bench.profiling.links) == {("b", "c"), ("c", "b")}


def test_a_link_that_cannot_be_measured_costs_nothing_else() -> None:
    bench = Bench({"a": "x", "b": "y"})
    bench.connect()
    bench.answer()
    bench.answer()
    bench.refuse("b does not answer")
    bench.run()
    assert set(bench.profiling.links) == {("b", "a")}
    assert bench.profiling.problems == {"a → b": "a: b does not answer"}


def test_a_progress_is_passed_on() -> None:
    bench = Bench({"a": "x"})
    bench.connect()
    effects = bench.say("a", MeasureProgress("prefill of 128 tokens", 2, 9))
    assert effects == [Advanced(Task("a"), "prefill of 128 tokens", 2, 9)]


Event = Callable[[Bench], object]


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (lambda bench: bench.tick(8, "b", "c"), "a is lost: no heartbeat"),
        (lambda bench: bench.connect("a", life=1), "a started again"),
        (lambda bench: bench.say("a", WorkerRestarted("a: killed by SIGKILL", "tcp://a:2", "w")), "killed by SIGKILL"),
        (lambda bench: bench.tick(PATIENCE_S + 2, "a", "b", "c"), "a said nothing for 60 s"),
    ],
)
def test_what_ends_a_measurement_names_device_and_reason(event: Event, reason: str) -> None:
    bench = Bench(TOGETHER)
    bench.connect()
    event(bench)
    ended, *links = [effect for effect in bench.effects if isinstance(effect, Ended)]
    assert ended.task == Task("a")
    assert reason in ended.problem
    # Its links are given up, the others go on.
    assert all("a" in link.task.names for link in links)
    assert bench.running == {Task("b")}


def test_who_never_comes_to_an_end_is_given_up() -> None:
    bench = Bench({"a": "x"})
    bench.connect()
    while bench.running:
        bench.say("a", MeasureProgress("decode", 1, 2))
        bench.tick(30, "a")
    assert LONGEST_S < bench.now < LONGEST_S + 31
    assert bench.profiling.problems == {"a": "a was not done after 900 s"}
    assert bench.profiling.is_finished


def test_who_starts_again_and_again_does_not_keep_the_others_waiting() -> None:
    bench = Bench({"a": "x", "b": "y"}, wait_s=10.0)
    for life in range(12):
        bench.connect("a", life=life)
        bench.tick(1, "a")
    assert bench.profiling.problems["b"] == "not connected"


def test_an_answer_to_what_is_no_longer_asked_is_not_used() -> None:
    bench = Bench({"a": "x"})
    bench.connect()
    number = bench.asked[0][1].request
    bench.say("a", DeviceMeasured(number + 1, device_profile("a", layer_ms=77.0)))
    assert not bench.profiling.profiles
    bench.answer()
    bench.say("a", DeviceMeasured(number, device_profile("a", layer_ms=77.0)))
    assert bench.profiling.profiles["a"].decode[0].layer.ms == 1.0


def test_an_answer_of_another_kind_than_was_asked_for_is_not_used() -> None:
    bench = Bench(APART)
    bench.connect()
    number = bench.asked[0][1].request
    bench.say("a", LinkMeasured(number, link_profile("a", "b")))
    bench.say("a", Failed("measure-link", "no_answer", "of a link that an earlier profile asked for"))
    assert bench.running == {Task("a"), Task("b"), Task("c")}
    for _ in range(3):
        bench.answer()
    number = bench.asked[0][1].request
    bench.say("a", DeviceMeasured(number, device_profile("a", layer_ms=77.0)))
    bench.say("a", Failed("measure-device", "out_of_memory", "of a device that an earlier profile asked for"))
    assert bench.running == {Task("a", "b")}
    bench.run()
    assert bench.profiling.profiles["a"].decode[0].layer.ms == 1.0
    assert not bench.profiling.problems
    assert len(bench.profiling.links) == 6


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"memory_bytes": 1 << 63}, "memory_bytes"),
        ({"fingerprint": {"board": math.nan}}, "JSON"),
        ({"decode": device_profile("a").decode * 2}, "two points"),
        ({"decode": tuple(DecodePoint(rows=1, context=n, layer=Timing(ms=1.0)) for n in range(257))}, "257 points"),
        ({"head": tuple(HeadPoint(rows=n, head=Timing(ms=1.0)) for n in range(1, 18))}, "17 points"),
        ({"stage_ms": 1e308}, "stage_ms"),
    ],
)
def test_numbers_that_no_profile_can_hold_cost_their_device_only(changes: dict[str, Any], words: str) -> None:
    bench = Bench(TOGETHER)
    bench.connect()
    number = bench.asked.pop(0)[1].request
    bench.say("a", DeviceMeasured(number, dataclasses.replace(device_profile("a"), **changes)))
    bench.run()
    assert set(bench.profiling.profiles) == {"b", "c"}
    assert bench.profiling.problems["a"].startswith("a answered nonsense: ")
    assert words in bench.profiling.problems["a"]


def test_a_link_that_no_profile_can_hold_is_left_out() -> None:
    bench = Bench({"a": "x", "b": "y"})
    bench.connect()
    bench.answer()
    bench.answer()
    number = bench.asked.pop(0)[1].request
    bench.say("a", LinkMeasured(number, link_profile("a", "b", latency_ms=1e300)))
    bench.run()
    assert set(bench.profiling.links) == {("b", "a")}
    assert "latency_ms" in bench.profiling.problems["a → b"]


def test_requests_are_numbered_from_where_the_caller_says() -> None:
    bench = Bench(TOGETHER)
    bench.profiling = dataclasses.replace(bench.profiling, first_request=500)
    bench.connect()
    assert bench.asked[0][1].request == 500
    bench.answer()
    assert bench.asked[0][1].request == 501


def test_a_connection_that_breaks_and_comes_back_costs_nothing() -> None:
    bench = Bench({"a": "x"})
    bench.connect()
    bench.say("a", bench.hello("a"), life=1)
    assert bench.running == {Task("a")}
    number = bench.asked[0][1].request
    bench.say("a", DeviceMeasured(number, device_profile("a")), life=1)
    assert bench.profiling.is_finished


def test_another_agent_with_the_same_key_is_told_so_and_not_believed() -> None:
    bench = Bench({"a": "x"})
    bench.connect()
    number = bench.asked[0][1].request
    bench.say("a", DeviceMeasured(number, device_profile("a", layer_ms=77.0)), life=1)
    assert not bench.profiling.profiles
    refused = bench.sent[-1]
    assert (refused.origin, isinstance(refused.message, Rejected)) == (b"a:1", True)


def test_one_device_again_measures_its_links_to_those_known_already() -> None:
    bench = Bench(APART, wanted=("b",), known=("a",))
    bench.connect("b")
    assert not bench.asked, "a, whose links to b are wanted, may still come"
    bench.connect("a")
    bench.run()
    assert set(bench.profiling.profiles) == {"b"}
    assert set(bench.profiling.links) == {("a", "b"), ("b", "a")}


def test_a_known_device_that_does_not_come_is_no_failure() -> None:
    bench = Bench(APART, wanted=("b",), known=("a",), wait_s=5.0)
    bench.connect("b")
    bench.tick(6, "b")
    bench.run()
    assert set(bench.profiling.profiles) == {"b"}
    assert (bench.profiling.links, bench.profiling.problems) == ({}, {})


@given(
    hosts=st.lists(st.sampled_from(["x", "y", "z"]), min_size=1, max_size=6),
    choices=st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=60),
)
def test_whatever_the_order_of_answers_no_host_is_disturbed_and_everything_ends(
    hosts: list[str], choices: list[tuple[int, bool]]
) -> None:
    names = {f"d{number}": host for number, host in enumerate(hosts)}
    bench = Bench(names)
    bench.connect()
    pending = iter(choices)
    while bench.asked:
        busy = [names[name] for task in bench.running for name in set(task.names)]
        within = [task for task in bench.running if task.peer and names[task.device] == names[task.peer]]
        assert len(busy) - len(within) == len(set(busy)), bench.running
        kinds = {bool(task.peer) for task in bench.running}
        assert len(kinds) == 1
        number, works = next(pending, (0, True))
        if works:
            bench.answer(number % len(bench.asked))
        else:
            bench.refuse("broken", number % len(bench.asked))
    assert bench.profiling.is_finished
    tasks = next(effect.tasks for effect in bench.effects if isinstance(effect, Planned))
    ended = [effect.task for effect in bench.effects if isinstance(effect, Ended)]
    assert sorted(ended, key=str) == sorted(tasks, key=str)
    done = {str(task) for task in tasks} - bench.profiling.problems.keys()
    assert done == {*bench.profiling.profiles, *(" → ".join(pair) for pair in bench.profiling.links)}
