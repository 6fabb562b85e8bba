"""`edgectl status`: the JSON as it came, and the text a person reads."""

from __future__ import annotations

import json

from edgectl.adaptive.decision import AdaptiveSettings
from edgectl.cluster_settings import ClusterSettings
from edgectl.commands.status import describe, stage_rows
from edgectl.failures import ExitCode
from edgectl.status import status_of
from planner.channel import Channel, ChannelState
from tests.edgectl.test_status import predicted, running
from tests.fakes.command_line import edgectl, edgectl_against
from tests.fakes.fake_agents import Scene
from tests.fakes.fake_engine import FakeEngine, Script
from tests.fakes.scripted_controller import Scripted, adaptive_scene


def test_json_is_what_the_server_says() -> None:
    result = edgectl_against(FakeEngine(lambda _: Script()), "status", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {"model": "wiki-32l", "devices": []}


def test_the_text_names_devices_stages_and_rates() -> None:
    scene = running()
    text = describe(status_of(scene.cluster, scene.now))
    for part in (
        "m: ready",
        "6 layers, fp32",
        "b       ready  [2, 4)",
        "tokens/s",
        "3 frames refused",
        "50.0 tokens/s",
    ):
        assert part in text


def test_a_prediction_is_shown_beside_the_measurement() -> None:
    scene = predicted()
    text = describe(status_of(scene.cluster, scene.now))
    assert "ms per token: 16.00 predicted, 20.00 measured (+25.0 %)" in text
    (row,) = [line for line in text.splitlines() if line.split()[:3] == ["b", "5.00", "5.00"]]
    assert row.split()[3] == "2.00"


def test_no_prediction_no_table() -> None:
    scene = running()
    assert "predicted" not in describe(status_of(scene.cluster, scene.now))


def test_unknown_numbers_are_dashes_and_problems_are_told() -> None:
    scene = Scene()
    scene.say("b", scene.agents["b"].hello(protocol=99))
    text = describe(status_of(scene.cluster, 0.0))
    assert "- tokens/s" in text
    assert "b: version_mismatch" in text


def test_stage_rows() -> None:
    stage = {
        "device": "a",
        "layers": [0, 11],
        "compute_ms": 1.234,
        "wire_ms": None,
        "wait_ms": 0.0,
        "bytes_per_frame": 8192.0,
    }
    assert stage_rows([stage]) == [("a", "[0, 11)", "1.23", "-", "0.00", "8,192")]


def test_nobody_there() -> None:
    result = edgectl("status", "--url", "http://127.0.0.1:9", "--json")
    assert (result.exit_code, result.stdout) == (ExitCode.UNAVAILABLE, "")


def test_splits_show_where_they_are_what_is_proposed_and_why_not() -> None:
    controller = Scripted(gain=-1.0)
    channel = Channel((ChannelState(loss=0.125, sigma=2.0, m=1.5),))
    scene = adaptive_scene(controller, channels={("a", "b"): channel})
    scene.open(max_tokens=20)
    scene.settle()
    controller.split = 4
    for _ in range(4):
        scene.token()
    text = describe(status_of(scene.cluster, scene.now))
    assert "splits by scripted" in text
    assert "moves: none" in text
    (row,) = [line.split() for line in text.splitlines() if line.split()[:4] == ["1", "3", "4", "gain"]]
    assert "does not pay" in " ".join(row)
    (link,) = [line for line in text.splitlines() if line.startswith("a -> b")]
    assert link.split()[3:7] == ["emulated", "0.125", "2.00", "1.50"]


def test_a_cluster_that_never_came_has_splits_to_show_all_the_same() -> None:
    controller = Scripted()
    scene = Scene(settings=ClusterSettings(adaptive=AdaptiveSettings(controller, 1)), splits=controller.splits)
    assert "nothing to split" in describe(status_of(scene.cluster, 0.0))
