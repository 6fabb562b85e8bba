"""The re-planner, held against every split it could choose."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.device.telemetry import TelemetryRecorder
from edgectl.adaptive.layer_pace import LayerPace
from edgectl.adaptive.replanner import LEAST_SHARE, UNKNOWN, Replanner
from rl.controller import Observation

SPLITS = (1, 4, 8, 16, 31)
PLANNER = Replanner(SPLITS, 176, 1000)


def taking(ms_per_layer: float) -> LayerPace:
    recorder, pace = TelemetryRecorder(), LayerPace()
    for _ in range(2):
        recorder.observe("decode_compute_seconds", 1e-3 * ms_per_layer * 8)
        pace.heard(recorder.snapshot(), 8)
    return pace


@given(st.sampled_from(SPLITS), st.floats(0.01, 10.0), st.floats(0.01, 10.0))
def test_it_finds_the_quickest_split_unless_that_is_hardly_quicker(present: int, here: float, there: float) -> None:
    proposal = PLANNER.planned(Observation(present), SPLITS, 32, taking(here), taking(there))
    ms = {split: here * split + there * (32 - split) for split in SPLITS}
    if min(ms.values()) > (1 - LEAST_SHARE) * ms[present]:
        assert ms[proposal.split] == pytest.approx(ms[present], rel=LEAST_SHARE + 1e-6)
    else:
        assert ms[proposal.split] == pytest.approx(min(ms.values()), rel=1e-6)
        assert "ms per token" in proposal.reason


def test_it_chooses_among_what_the_devices_hold() -> None:
    assert PLANNER.planned(Observation(8), (4, 8, 16), 32, taking(0.1), taking(1.0)).split == 16


def test_without_measurements_it_stays_and_says_so() -> None:
    proposal = PLANNER.planned(Observation(8), SPLITS, 32, taking(0.1), LayerPace())
    assert (proposal.split, proposal.reason) == (8, UNKNOWN)
    assert PLANNER.propose(Observation(4)).split == 4


def test_a_split_it_does_not_know_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="split 5 is none of"):
        PLANNER.planned(Observation(5), SPLITS, 32, taking(0.1), taking(1.0))
