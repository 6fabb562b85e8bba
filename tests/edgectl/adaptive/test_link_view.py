"""What a decision knows of a link: emulated states of positions, measurements of heartbeats, and why there is none."""

from __future__ import annotations

import json

import pytest

from agent.device.telemetry import TelemetryRecorder
from agent.wire.link_report import LinkObservation
from agent.wire.messages import Heartbeat, Telemetry
from edgectl.adaptive.link_view import view_link
from planner.channel import Channel, ChannelState
from rl.controller import Observation

WALK = Channel(tuple(ChannelState(loss=0.1 * step, sigma=2.0 * step, m=3.0 - step / 2) for step in range(5)), 7, 2)


def test_an_emulated_channel_is_observed_at_the_positions_of_the_sessions() -> None:
    view = view_link("a", "b", WALK, [4], None)
    assert (view.loss, view.sigma, view.m) == (0.2, 4.0, 2.0)
    both = view_link("a", "b", WALK, [0, 5], None)
    assert (both.loss, both.sigma, both.m) == (0.1, 2.0, 2.5)
    assert view_link("a", "b", WALK, [], None).loss == 0.0
    assert view_link("a", "b", WALK, [10_000], None).loss == 0.0
    assert view.as_json()["emulated"] is True


def test_of_a_real_link_the_loss_is_not_known_and_says_why() -> None:
    link = LinkObservation("b", 12.5, 1.0, 1e6, is_lower_bound=True, resent=0.02)
    view = view_link("a", "b", None, [3], Heartbeat(1, telemetry=Telemetry(links=(LinkObservation("c", 99.0), link))))
    assert view.observation(4) == Observation(4, None, None, None, 12.5, 1e6)
    assert (view.is_lower_bound, view.resent) == (True, 0.02)
    assert "TCP" in dict(view.missing)["loss"]
    shown = view.as_json()
    assert shown["emulated"] is False
    assert json.loads(json.dumps(shown)) == shown


def test_without_a_report_of_the_link_the_round_trip_is_that_of_pings() -> None:
    recorder = TelemetryRecorder()
    for _ in range(3):
        recorder.observe("hop_rtt_seconds", 0.02)
    measured = view_link("a", "b", None, [], Heartbeat(1, telemetry=recorder.snapshot()))
    assert measured.rtt_ms is not None
    assert 15.0 < measured.rtt_ms < 25.0
    assert measured.goodput_bytes_per_s is None
    empty = view_link("a", "b", None, [], Heartbeat(1))
    assert (empty.rtt_ms, empty.goodput_bytes_per_s) == (None, None)
    assert dict(view_link("a", "b", None, [], None).missing)["rtt_ms"] == "no heartbeat of a yet"


def test_noise_by_its_ratio_is_no_sigma_and_a_channel_without_a_shape_has_no_m() -> None:
    view = view_link("a", "b", Channel((ChannelState(loss=0.1, snr_db=10.0),)), [0], None)
    assert (view.sigma, view.snr_db, view.m) == (None, 10.0, None)
    assert {"sigma", "m"} <= set(dict(view.missing))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_what_no_measurement_says_is_not_known(value: float) -> None:
    link = LinkObservation("b", value, goodput_bytes_per_s=value, resent=value)
    view = view_link("a", "b", None, [], Heartbeat(1, telemetry=Telemetry(links=(link,))))
    assert (view.rtt_ms, view.goodput_bytes_per_s, view.resent) == (None, None, None)
