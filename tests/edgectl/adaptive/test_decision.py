"""What a controller may not have is held with a reason, and what it leaves open is filled in."""

from __future__ import annotations

import msgspec
import pytest

from agent.device.telemetry import TelemetryRecorder
from agent.wire.messages import Heartbeat
from edgectl.adaptive.decision import AdaptiveSettings
from edgectl.adaptive.guards import Limits
from edgectl.adaptive.replanner import UNKNOWN, Replanner
from rl.controller import Observation
from tests.fakes.scripted_controller import Scripted, adaptive_scene, control, moves, split, state, tokens


@pytest.mark.parametrize(
    ("controller", "guard", "reason"),
    [
        (Scripted(split=4, splits=(1, 2)), "stay", "scripted: split 3 is not known"),
        (Scripted(split=4, gain=-0.5), "gain", "a gain of -0.5000"),
        (Scripted(split=4, gain=float("nan")), "gain", "a gain of nan"),
    ],
)
def test_what_a_controller_may_not_have_is_held_with_the_reason(controller: Scripted, guard: str, reason: str) -> None:
    scene = adaptive_scene(Scripted())
    control(scene, AdaptiveSettings(controller, 1000, Limits(interval_tokens=4)))
    scene.open(max_tokens=40)
    scene.settle()
    tokens(scene, 4)
    assert moves(scene) == []
    assert state(scene)[1] == guard
    assert reason in state(scene)[2]


@pytest.mark.parametrize(("wanted", "nearest"), [(6, 5), (99, 5), (0, 1), (-7, 1)])
def test_of_a_split_beyond_what_devices_hold_the_nearest_is_taken(wanted: int, nearest: int) -> None:
    scene = adaptive_scene(Scripted(split=wanted, gain=1.0))
    scene.open(max_tokens=40)
    scene.settle()
    assert split(scene) == nearest
    tokens(scene, 4)
    assert state(scene)[:2] == (wanted, "not-resident")
    assert "a holds layers [0, 5), b holds layers [1, 6)" in state(scene)[2]


def test_the_nearest_split_has_not_the_gain_of_the_one_that_was_wanted() -> None:
    scene = adaptive_scene(Scripted())
    control(scene, AdaptiveSettings(Scripted(split=9, gain=5.0), 1000, Limits(interval_tokens=4), lambda _, at: -at))
    scene.open(max_tokens=40)
    scene.settle()
    proposal, guard, reason = state(scene)
    assert (proposal, guard) == (5, "gain")
    assert "a gain of -5.0000" in reason


def test_a_proposal_without_a_gain_is_priced_and_stays_where_it_does_not_pay() -> None:
    scene = adaptive_scene(Scripted(split=4))
    prices = {4: -0.25}
    adaptive = AdaptiveSettings(Scripted(split=4), 1000, Limits(interval_tokens=4), lambda _, at: prices[at])
    control(scene, adaptive)
    scene.open(max_tokens=40)
    scene.settle()
    assert state(scene)[:2] == (4, "gain")
    prices[4] = 0.25
    tokens(scene, 4)
    scene.settle()
    assert split(scene) == 4


def test_a_device_without_memory_or_without_a_word_gets_no_layers() -> None:
    controller = Scripted()
    scene = adaptive_scene(controller)
    scene.open(max_tokens=40)
    scene.settle()
    hello = msgspec.structs.replace(scene.agents["b"].hello(), memory_bytes=9)
    scene.say("b", hello)
    controller.split = 2
    tokens(scene, 4)
    assert state(scene)[1:] == ("memory", "b has room for 0 MiB of a model and holds 1 MiB")
    controller.split = 4
    scene.say("a", Heartbeat(1))
    scene.tick(3.0)
    scene.say("a", Heartbeat(1))
    scene.tick(2.0)
    tokens(scene, 4)
    assert state(scene)[1:] == ("suspected", "b was not heard for a while")


def test_before_a_session_begins_small_steps_are_taken_at_once() -> None:
    controller = Scripted(ask=lambda seen: min(5, seen.split + 1), gain=0.5)
    scene = adaptive_scene(controller)
    scene.open(max_tokens=40)
    assert [move.split for move in moves(scene)] == [5]
    scene.settle()
    assert split(scene) == 5


def test_a_controller_that_goes_in_circles_is_followed_once_around() -> None:
    scene = adaptive_scene(Scripted(ask=lambda seen: {3: 4, 4: 5, 5: 4}[seen.split]))
    scene.open(max_tokens=40)
    scene.settle()
    assert split(scene) == 5
    beyond = adaptive_scene(Scripted(ask=lambda seen: seen.split + 1))
    beyond.open(max_tokens=40)
    beyond.settle()
    assert split(beyond) == 5


def test_steps_that_lose_together_are_not_taken() -> None:
    gains = iter([0.5, -2.0])

    def losing(seen: Observation) -> int:
        controller.gain = next(gains, 0.0)
        return min(5, seen.split + 1)

    controller = Scripted(ask=losing)
    scene = adaptive_scene(controller)
    scene.open(max_tokens=40)
    assert moves(scene) == []
    assert state(scene)[1] == "gain"


def test_a_planner_goes_by_what_heartbeats_say_of_the_two_devices() -> None:
    planner = Replanner((1, 2, 3, 4, 5), 16, 1000)
    scene = adaptive_scene(Scripted())
    control(scene, AdaptiveSettings(planner, 1000, Limits(interval_tokens=4, dwell_tokens=0)))
    scene.open(max_tokens=40)
    scene.settle()
    tokens(scene, 4)
    assert state(scene) == (3, "stay", UNKNOWN)
    recorders = {"a": TelemetryRecorder(), "b": TelemetryRecorder()}
    for _ in range(2):
        for name, ms in (("a", 1.0), ("b", 5.0)):
            recorders[name].observe("decode_compute_seconds", 1e-3 * ms)
            scene.say(name, Heartbeat(1, telemetry=recorders[name].snapshot()))
    tokens(scene, 4)
    scene.settle()
    assert split(scene) == 5


def test_a_person_is_told_who_decides_and_what_to_know_of_the_file() -> None:
    adaptive = AdaptiveSettings(Scripted(), 1, Limits(8, 16, is_shadow=True), origin="p.onnx", notes=("it is old",))
    first, second = adaptive.described().splitlines()
    assert first == (
        "splits 1, 2, 3, 4, 5 by scripted (p.onnx), decided every 8 tokens, 16 apart, in shadow: nothing is moved"
    )
    assert second == "warning: it is old"
