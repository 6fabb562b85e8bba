"""Status numbers from known telemetry."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from agent.device.telemetry import TelemetryRecorder
from agent.errors import RefusalReason
from agent.wire.link_report import LinkObservation, RadioObservation
from agent.wire.messages import Heartbeat, Telemetry
from edgectl.status import frames_refused, routes_of, stages_of, status_of
from planner.types import StageCost
from tests.fakes.fake_agents import NAMES, Scene, two_routes


def measured(*, compute_s: float, round_trip_s: float, wire_s: float | None = None) -> Telemetry:
    recorder = TelemetryRecorder()
    for _ in range(4):
        recorder.observe("decode_compute_seconds", compute_s)
        recorder.observe("decode_wait_seconds", 0.001)
        recorder.observe("hop_rtt_seconds", round_trip_s)
        if wire_s is not None:
            recorder.observe("decode_wire_seconds", wire_s)
            recorder.observe("decode_step_seconds", 0.020)
    recorder.add("decode_frames_sent", 4)
    recorder.add("decode_bytes_sent", 1200)
    recorder.refused(RefusalReason.CRC)
    return recorder.snapshot()


def running() -> Scene:
    scene = Scene().ready()
    for name, telemetry in (
        ("a", measured(compute_s=0.004, round_trip_s=0.001, wire_s=0.006)),
        ("b", measured(compute_s=0.005, round_trip_s=0.004)),
        ("c", measured(compute_s=0.006, round_trip_s=0.001)),
    ):
        scene.say(name, Heartbeat(1, "", telemetry, 1234))
    return scene


def test_stages_say_where_a_token_spends_its_time() -> None:
    scene = running()
    plan = scene.cluster.deployment.plan
    assert plan is not None
    stages = stages_of(plan, scene.cluster.telemetry())
    assert [stage["device"] for stage in stages] == list(NAMES)
    assert [stage["compute_ms"] for stage in stages] == [4.0, 5.0, 6.0]
    assert [stage["wait_ms"] for stage in stages] == [1.0, 1.0, 1.0]
    assert [stage["bytes_per_frame"] for stage in stages] == [300.0, 300.0, 300.0]
    wires = [stage["wire_ms"] for stage in stages]
    # The whole is measured at the source; its split follows the round trips, known to a bucket's width.
    assert sum(map(float, map(str, wires))) == pytest.approx(6.0, abs=0.01)
    assert wires[0] == wires[2]
    assert float(str(wires[1])) / float(str(wires[0])) == pytest.approx(4.0, rel=0.4)


def test_a_hop_that_never_answered_a_ping_counts_like_the_others() -> None:
    scene = running()
    plan = scene.cluster.deployment.plan
    assert plan is not None
    telemetry = {"a": measured(compute_s=0.1, round_trip_s=0.001, wire_s=0.009)}
    assert [stage["wire_ms"] for stage in stages_of(plan, telemetry)] == [3.0, 3.0, 3.0]


def test_the_whole_status_is_json_and_complete() -> None:
    scene = running()
    scene.open()
    scene.open()
    status = status_of(scene.cluster, scene.now + 0.5)
    assert json.loads(json.dumps(status)) == status
    assert (status["ready"], status["phase"], status["model"]) == (True, "ready", "m")
    assert status["tokens_per_s"] == 50.0
    assert status["sessions"] == {
        "running": 1,
        "queued": 1,
        "opened": 2,
        "ended": 0,
        "failed": 0,
        "rows": 1,
        "rows_in_use": 1,
        "queued_by_key": {"": 1},
        "expected_wait_s": None,
    }
    assert status["frames_refused"] == {"crc": 3}
    devices = status["devices"]
    assert isinstance(devices, list)
    assert devices[1] == {
        "name": "b",
        "state": "ready",
        "provider": "cpu",
        "agent_version": "9.9.9",
        "layers": [[2, 4]],
        "memory_bytes": 10,
        "memory_available_bytes": 100,
        "resident_bytes": 1234,
        "busy": "",
        "heard_s": 0.5,
        "problem": "",
        "links": [],
        "radios": [],
    }


def test_a_device_says_what_it_knows_of_its_links_and_radios() -> None:
    scene = running()
    link = LinkObservation("b", 12.5, 1.0, 1e6, resent=0.02, missing={"x": "why"})
    radio = RadioObservation("wlan0", "iw", signal_dbm=-61.0, tx_retries=4)
    scene.say("a", Heartbeat(1, telemetry=Telemetry(links=(link,)), radios=(radio,)))
    status = status_of(scene.cluster, scene.now)
    assert json.loads(json.dumps(status)) == status
    device = status["devices"][0]  # type: ignore[index]
    assert (device["links"][0]["peer"], device["links"][0]["rtt_ms"], device["links"][0]["missing"]) == (
        "b",
        12.5,
        {"x": "why"},
    )
    assert (device["radios"][0]["signal_dbm"], device["radios"][0]["tx_failed"]) == (-61.0, None)


def predicted() -> Scene:
    """The same devices under a plan that a planner with times made."""
    scene = running()
    plan = scene.cluster.deployment.plan
    assert plan is not None
    costs = tuple(StageCost(compute_ms, hop_ms) for compute_ms, hop_ms in ((4.5, 1.5), (5.0, 2.0), (5.5, 0.25)))
    scene.cluster.deployment.plan = replace(plan, predicted={"ms_per_token": 16.0, "tokens_per_s": 62.5}, costs=costs)
    return scene


def test_what_was_predicted_stands_beside_what_is_measured() -> None:
    scene = predicted()
    status = status_of(scene.cluster, scene.now)
    assert json.loads(json.dumps(status)) == status
    assert status["ms_per_token"] == 20.0
    assert status["predicted"] == {"ms_per_token": 16.0, "tokens_per_s": 62.5, "measured_over_predicted": 1.25}
    stages = status["stages"]
    assert isinstance(stages, list)
    assert [stage["predicted_compute_ms"] for stage in stages] == [4.5, 5.0, 5.5]
    assert [stage["predicted_hop_ms"] for stage in stages] == [1.5, 2.0, 0.25]
    assert [stage["compute_ms"] for stage in stages] == [4.0, 5.0, 6.0]


def test_nothing_is_predicted_by_a_plan_without_times_and_nothing_measured_before_the_first_token() -> None:
    status = status_of(running().cluster, 0.0)
    assert status["predicted"] is None
    stages = status["stages"]
    assert isinstance(stages, list)
    assert {stage["predicted_compute_ms"] for stage in stages} == {None}
    scene = predicted()
    for device in scene.cluster.devices:
        device.heartbeat = None
    before = status_of(scene.cluster, 0.0)["predicted"]
    assert isinstance(before, dict)
    assert before["measured_over_predicted"] is None


def test_a_cluster_without_devices_has_a_status_too() -> None:
    status = status_of(Scene().cluster, 0.0)
    assert (status["ready"], status["plan"], status["stages"], status["tokens_per_s"]) == (False, None, [], None)
    assert "waiting for a, b, c" in str(status["detail"])


def test_refusals_are_summed_over_devices() -> None:
    one, two = TelemetryRecorder(), TelemetryRecorder()
    one.refused(RefusalReason.CRC)
    two.refused(RefusalReason.CRC)
    two.refused(RefusalReason.EPOCH)
    assert frames_refused({"a": one.snapshot(), "b": two.snapshot()}) == {"crc": 2, "epoch": 1}


def test_every_route_shows_its_micro_batches_and_the_pace_that_was_observed() -> None:
    scene = Scene(two_routes).ready()
    status = status_of(scene.cluster, 0.0)
    assert json.loads(json.dumps(status)) == status
    assert [stage["route"] for stage in status["stages"]] == [0, 0, 1, 1]  # type: ignore[attr-defined]
    sessions = [scene.open(max_tokens=4) for _ in range(6)]
    scene.settle()
    for session in scene.agents["a"].running:
        for _ in range(2):
            scene.now += 0.01
            scene.token(session)
    by_b, by_c = routes_of(scene.cluster)
    assert (by_b["devices"], by_b["rows"], by_b["rows_in_use"]) == (["a", "b"], 4, 4)
    assert (by_c["devices"], by_c["rows"], by_c["rows_in_use"]) == (["a", "c"], 1, 1)
    assert by_b["ms_per_token"] == pytest.approx(10.0)
    batches = by_b["micro_batches"]
    assert isinstance(batches, list)
    assert [(batch["state"], batch["rows"], batch["rows_in_use"]) for batch in batches] == [("open", 2, 2)] * 2
    status = status_of(scene.cluster, scene.now)
    assert float(str(status["tokens_per_s"])) == pytest.approx(100.0, rel=0.2)
    assert len(sessions) == 6
    assert status["sessions"]["queued_by_key"] == {"": 1}  # type: ignore[index]
