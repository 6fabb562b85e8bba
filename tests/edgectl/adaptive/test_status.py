"""What status says of splits."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from edgectl.adaptive.status import adaptive_of, present_plan, schedules_of
from edgectl.status import status_of
from planner.channel import erasing
from planner.types import LayerRange, StageCost
from tests.fakes.fake_agents import Scene
from tests.fakes.scripted_controller import Scripted, adaptive_scene


def moved() -> Scene:
    controller = Scripted(gain=0.25)
    scene = adaptive_scene(controller, channels={("a", "b"): erasing(0.1)})
    scene.open(max_tokens=8)
    scene.settle()
    controller.split = 5
    for _ in range(4):
        scene.now += 0.02
        scene.token()
    scene.settle()
    return scene


def test_it_shows_split_proposal_and_reason_and_is_json() -> None:
    scene = moved()
    status = status_of(scene.cluster, scene.now)
    assert json.loads(json.dumps(status)) == status
    adaptive = adaptive_of(scene.cluster)
    assert status["adaptive"] == adaptive
    assert adaptive is not None
    assert (adaptive["controller"], adaptive["shadow"], adaptive["splits"]) == ("scripted", False, [1, 2, 3, 4, 5])
    assert adaptive["moves"] == {"moved": 1, "kept": 0, "unanswered": 0, "broken": 0}
    batches: Any = adaptive["micro_batches"]
    (batch,) = batches
    link = batch.pop("link")
    assert batch == {
        "route": 0,
        "number": 1,
        "split": 5,
        "split_points": [1, 2, 3, 4, 5],
        "proposal": 5,
        "gain": 0.25,
        "moving_to": None,
        "guard": None,
        "reason": "as the script says",
        "last_kept": "",
    }
    assert (link["from"], link["to"], link["emulated"], link["loss"]) == ("a", "b", True, 0.1)


def test_stages_are_those_of_now_and_predictions_those_of_the_plan() -> None:
    scene = moved()
    plan = scene.cluster.deployment.plan
    assert plan is not None
    costs = (StageCost(1.0, 1.0), StageCost(1.0, 1.0))
    scene.cluster.deployment.plan = replace(plan, costs=costs)
    present = present_plan(scene.cluster)
    assert present is not None
    assert [stage.layers for stage in present.routes[0].stages] == [LayerRange(0, 5), LayerRange(5, 6)]
    assert present.costs == ()
    (batch,) = scene.cluster.deployment.routes[0].micro_batches
    batch.split = 3
    assert present_plan(scene.cluster) == scene.cluster.deployment.plan


def test_ended_sessions_leave_their_schedules() -> None:
    scene = moved()
    assert schedules_of(scene.cluster) == []
    for _ in range(4):
        scene.token()
    (ended,) = schedules_of(scene.cluster)
    assert ended["schedule"] == [[0, 3], [6, 5]]
    assert (ended["session"], ended["prompt_tokens"], ended["tokens"]) == ("s1", 2, 8)


def test_without_a_policy_there_is_none() -> None:
    scene = Scene()
    assert adaptive_of(scene.cluster) is None
    assert present_plan(scene.cluster) is None


def test_a_route_with_one_split_says_that_there_is_nothing_to_choose() -> None:
    scene = adaptive_scene(Scripted(split=3, splits=(3,)))
    scene.open(max_tokens=20)
    scene.settle()
    for _ in range(8):
        scene.token()
    adaptive = adaptive_of(scene.cluster)
    assert adaptive is not None
    batches: Any = adaptive["micro_batches"]
    assert (batches[0]["split"], batches[0]["reason"]) == (3, "there is no other split")
    assert adaptive["decisions"] == 0
