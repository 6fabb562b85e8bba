"""`edgectl serve --policy`: joins a policy or table, the plan it needs, and how eagerly it may move splits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from edgectl.adaptive.choice import AdaptiveChoice
from edgectl.adaptive.controller import SubjectModel, load_chooser
from edgectl.adaptive.decision import AdaptiveSettings
from edgectl.adaptive.plan import widen
from edgectl.deploy import Order
from edgectl.output import CommandFailure
from edgectl.planning import ServedModel
from planner.channel import Channel
from planner.cost import hidden_bytes
from planner.memory import kv_bytes_per_token_layer
from planner.types import Quantization
from rl.policy_card import BadPolicy
from rl.quality import BadQualityTable


def adapt_order(
    order: Order,
    model: ServedModel,
    quantization: Quantization,
    choice: AdaptiveChoice,
    *,
    stopwatch: Callable[[], float],
    channels: Mapping[tuple[str, str], Channel],
) -> tuple[Order, AdaptiveSettings]:
    """The order with plans that hold what the controller's splits take, and the controller itself.

    Raises CommandFailure for a policy or table that cannot be used and ConfigError for one of the wrong kind, each
    naming the file.
    """
    spec = model.spec
    kv_bytes = kv_bytes_per_token_layer(spec, 2 if quantization == "fp16" else 4)
    subject = SubjectModel(model.name, model.digest, spec.num_layers, hidden_bytes(spec.hidden_size, "fp16"), kv_bytes)
    try:
        chooser = load_chooser(choice.path, choice.kind, subject)
    except (BadPolicy, BadQualityTable) as problem:
        raise CommandFailure.of(problem.code, str(problem)) from problem
    splits = chooser.controller.splits
    settings = AdaptiveSettings(
        controller=chooser.controller,
        kv_bytes_per_token_layer=kv_bytes,
        limits=choice.limits,
        price=chooser.price,
        origin=chooser.origin,
        stopwatch=stopwatch,
        notes=tuple(chooser.mismatches(channels)),
    )
    return replace(order, splits=splits, widen=partial(widen, spec=spec, splits=splits)), settings
