"""A policy becomes an order whose plans hold its splits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from edgectl.adaptive.choice import AdaptiveChoice
from edgectl.adaptive.guards import Limits
from edgectl.adaptive.serving import adapt_order
from edgectl.failures import ExitCode
from edgectl.output import CommandFailure
from edgectl.planning import ServedModel, ServingOptions, order_for, order_of_plan
from planner.memory import kv_bytes_per_token_layer
from planner.model_spec import parse_config
from planner.types import Device, LayerRange
from rl.export import write_policy
from tests.fakes.small_policy import SPLITS, deeper_when_lossy, small_card

CONFIG = Path(__file__).parents[3] / "examples" / "models" / "wiki-32l" / "config.json"
SPEC = parse_config(json.loads(CONFIG.read_text()))
MODEL = ServedModel("tiny", "ab" * 32, SPEC)
DEVICES = [Device("a", 1 << 34), Device("b", 1 << 34)]


def choice(directory: Path, **changes: object) -> AdaptiveChoice:
    path = directory / "policy.onnx"
    write_policy(path, deeper_when_lossy(), small_card(**changes))
    return AdaptiveChoice(path, None, Limits(is_shadow=True))


def test_plans_of_the_order_hold_what_the_policys_splits_take(tmp_path: Path) -> None:
    order = order_for(MODEL, ServingOptions(context=256), ["a", "b"])
    adapted, settings = adapt_order(order, MODEL, "fp32", choice(tmp_path), stopwatch=lambda: 0.0, channels={})
    assert adapted.splits == SPLITS
    assert adapted.widen is not None
    plan = adapted.widen(adapted.plan_for(DEVICES)).plan
    assert [each.resident for each in plan.allotments] == [(LayerRange(0, 16),), (LayerRange(1, 32),)]
    assert settings.limits.is_shadow
    assert settings.kv_bytes_per_token_layer == kv_bytes_per_token_layer(SPEC, 4)
    half = adapt_order(order, MODEL, "fp16", choice(tmp_path), stopwatch=lambda: 0.0, channels={})[1]
    assert 2 * half.kv_bytes_per_token_layer == settings.kv_bytes_per_token_layer


def test_a_policy_that_cannot_be_used_ends_the_command_with_its_exit_code(tmp_path: Path) -> None:
    order = order_for(MODEL, ServingOptions(context=256), ["a", "b"])
    with pytest.raises(CommandFailure, match="trained for 24 layers") as refused:
        adapt_order(order, MODEL, "fp32", choice(tmp_path, num_layers=24), stopwatch=lambda: 0.0, channels={})
    assert refused.value.exit_code is ExitCode.CONFIG
    other = replace(MODEL, digest="cd" * 32)
    with pytest.raises(CommandFailure, match="digest"):
        adapt_order(order, other, "fp32", choice(tmp_path), stopwatch=lambda: 0.0, channels={})


def test_a_plan_that_is_executed_as_it_is_gets_room_for_splits_too(tmp_path: Path) -> None:
    planned = order_for(MODEL, ServingOptions(context=256, quantization="int8"), ["a", "b"]).plan_for(DEVICES)
    order = order_of_plan(MODEL, planned, ["a", "b"])
    adapted, _ = adapt_order(order, MODEL, "int8", choice(tmp_path), stopwatch=lambda: 0.0, channels={})
    assert adapted.widen is not None
    widened = adapted.widen(adapted.plan_for(DEVICES)).plan
    assert [each.resident for each in widened.allotments] == [(LayerRange(0, 16),), (LayerRange(1, 32),)]
    assert all(each.memory_bytes <= each.memory_available_bytes for each in widened.allotments)
