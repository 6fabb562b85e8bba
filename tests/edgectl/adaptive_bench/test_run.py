"""What a run writes for the coordinator and reads from it; tests/cluster/test_adaptive.py runs one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgectl.adaptive_bench.run import EDGE, SOURCE, Contender, LiveRun, Trial, links_toml, recorded, schedule_of
from edgectl.model_source import LocatedModel
from edgectl.output import CommandFailure
from planner.channel import Channel, ChannelState

TRIAL = Trial(
    model=LocatedModel("m", Path("m")),
    channel=Channel((ChannelState(loss=0.1),), seed=3),
    prompt=(1, 2, 3),
    tokens=10,
    codec="int8",
    latency_ms=2.5,
    rate="20 Mbit",
)


def test_both_directions_take_time_and_one_loses() -> None:
    tables = msgspec.toml.decode(links_toml(TRIAL, "trace.json"))["links"]
    assert [(table["from"], table["to"]) for table in tables] == [(SOURCE, EDGE), (EDGE, SOURCE)]
    assert all((table["latency_ms"], table["rate"]) == (2.5, "20 Mbit") for table in tables)
    assert [table.get("channel") for table in tables] == ["trace.json", None]


def test_a_session_can_be_run_again_as_it_was() -> None:
    session = recorded(TRIAL, ((0, 4), (8, 6)))
    assert (session.prompt, session.max_tokens, session.codec) == ((1, 2, 3), 10, "int8")
    assert (session.channel, session.schedule) == (TRIAL.channel, ((0, 4), (8, 6)))
    assert session.sampling.temperature == 0.0


def test_the_last_tokens_hidden_states_cross_no_link() -> None:
    assert TRIAL.positions == 12


def test_the_schedule_is_that_of_the_session_that_ended_last() -> None:
    status = {"schedules": [{"schedule": [[0, 4]]}, {"schedule": [[0, 4], [9, 8]]}]}
    assert schedule_of(status) == ((0, 4), (9, 8))


@pytest.mark.parametrize(
    "status",
    [
        {},
        {"schedules": []},
        {"schedules": [{}]},
        {"schedules": [{"schedule": []}]},
        {"schedules": [{"schedule": [[0]]}]},
        {"schedules": [{"schedule": [[3, 4]]}]},
        {"schedules": [{"schedule": [[0, "many"]]}]},
    ],
)
def test_a_status_without_a_schedule_is_a_failure(status: dict[str, Any]) -> None:
    with pytest.raises(CommandFailure, match="no damage schedule"):
        schedule_of(status)


def test_a_gap_is_held_against_the_others() -> None:
    def run(*gaps_ms: float) -> LiveRun:
        return LiveRun(Contender("table", ()), (1, 2, 3, 4), gaps_ms, ((0, 2),), {})

    assert run(10.0, 10.0, 79.0).is_smooth
    assert not run(10.0, 10.0, 81.0).is_smooth
    assert run(10.0, 12.0, 79.0).ms_per_token == 12.0
