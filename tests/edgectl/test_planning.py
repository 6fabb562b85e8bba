"""From options to an order: context, codec, and what is refused before any device is asked."""

from __future__ import annotations

import pytest

from edgectl.planning import DEFAULT_CONTEXT_TOKENS, ServedModel, ServingOptions, context_of, order_for
from planner.errors import Infeasible
from planner.model_spec import parse_config
from planner.types import Device
from tests.fakes.fake_engine import MODEL_DIR, FakeEngine

SPEC = FakeEngine(script=lambda _: None).spec  # type: ignore[arg-type, return-value]  # only its model is used
MODEL = ServedModel("wiki-32l", "digest", SPEC)
GIB = 1 << 30


def test_the_context_is_what_the_model_has_up_to_the_default() -> None:
    assert context_of(SPEC, ServingOptions()) == SPEC.max_positions == 2048
    long = parse_config({**_config(), "max_position_embeddings": 131072})
    assert context_of(long, ServingOptions()) == DEFAULT_CONTEXT_TOKENS
    assert context_of(long, ServingOptions(context=131072)) == 131072


@pytest.mark.parametrize("context", [0, 2, 2049])
def test_a_context_the_model_has_not_is_refused(context: int) -> None:
    with pytest.raises(ValueError, match=f"--context {context} is outside 3 to 2048"):
        context_of(SPEC, ServingOptions(context=context))


def test_the_order_makes_the_plan_that_was_asked_for() -> None:
    options = ServingOptions(quantization="int4", boundary="bf16", context=64, source="b")
    order = order_for(MODEL, options, ("a", "b"))
    plan = order.plan_for([Device("a", GIB), Device("b", GIB)])
    assert (plan.quantization, plan.boundary, plan.codec, plan.context) == ("int4", "bf16", "bf16", 64)
    assert plan.routes[0].source == "b"
    assert plan.routes[0].layers.stop == 32
    assert (order.min_devices, order.source, order.digest) == (2, "b", "digest")


def test_a_codec_may_differ_from_the_boundary() -> None:
    plan = order_for(MODEL, ServingOptions(codec="int8"), ("a",)).plan_for([Device("a", GIB)])
    assert (plan.boundary, plan.codec) == ("fp16", "int8")


def test_what_does_not_fit_is_said_by_the_planner() -> None:
    with pytest.raises(Infeasible, match="wiki-32l"):
        order_for(MODEL, ServingOptions(), ("a",)).plan_for([Device("a", 1 << 20)])


@pytest.mark.parametrize(
    ("options", "min_devices", "message"),
    [
        (ServingOptions(source="c"), None, "--source c is not among the devices a, b"),
        (ServingOptions(), 0, "--min-devices 0 is outside 1 to 2"),
        (ServingOptions(), 3, "--min-devices 3 is outside 1 to 2"),
    ],
)
def test_options_that_contradict_each_other(options: ServingOptions, min_devices: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        order_for(MODEL, options, ("a", "b"), min_devices)


def _config() -> dict[str, object]:
    import json

    config: dict[str, object] = json.loads((MODEL_DIR / "config.json").read_text())
    return config
