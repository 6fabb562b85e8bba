"""This machine as a cluster of one: really measured, with a model so small that it takes a second."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from edgectl import this_machine
from edgectl.profiled_model import ProfiledModel, config_of
from planner.answer import PlanRequest, make_plan
from planner.workload import Workload
from tests.fakes.measured_devices import SPEC


def test_a_plan_from_what_was_measured_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(this_machine, "SECONDS", 0.6)
    spec = replace(SPEC, num_layers=4, sliding_windows=(None,) * 4)
    model = ProfiledModel("tiny", json.dumps(config_of(spec)), spec)
    profile = this_machine.measure_this_machine(model, "int4", 32)
    assert profile.model == "tiny"
    assert (profile.quantization, profile.block_size) == ("int4", 32)
    assert len(profile.devices) == 1
    assert not profile.devices[0].estimated
    assert profile.created
    assert profile.version
    workload = Workload(quantization="int4", block_size=32, prompt=8, tokens=8, context=512)
    answer = make_plan(PlanRequest(profile=profile, workload=workload))
    assert len(answer.plan.routes[0].stages) == 1
    assert answer.prediction.ms_per_token > 0
    assert not answer.estimated
