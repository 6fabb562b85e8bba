"""Plans that others make from the same numbers, to be shown beside the exact one.

Each is a route, or Infeasible with what is lacking where. None looks further than its rule, so a baseline may not fit
where the planner finds a plan; costs are those of `prediction`, like everyone's.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import replace
from decimal import Decimal
from functools import partial
from itertools import accumulate, pairwise

import numpy as np

from planner.cost import CostModel
from planner.errors import Infeasible
from planner.latency import cheapest_route
from planner.memory_proportional import proportional_layers
from planner.problem import Problem, Segment
from planner.published import PublishedPlan, algorithm_1, algorithm_2, algorithm_2_steps, expanded
from planner.shortage import shortages
from planner.subproblem import limited
from planner.types import Device, LayerRange, Route, Stage

MIB = 1 << 20
MOST_STEPS = 3_000_000
"""Of Algorithm 2; a second or so, and five devices with 48 layers."""


def baseline_routes(model: CostModel) -> dict[str, Route | Infeasible]:
    """Every baseline by name. The two-device ones pair the source with the fastest other device, the cloud.

    With trusted ends the last layer of a rule that knows nothing of them is moved back to the source.
    """
    rules: dict[str, Callable[[CostModel], Route]] = {
        "solo": solo,
        "even": _even,
        "cloud-edge-even": cloud_edge_even,
        "cloud-edge-opt": cloud_edge_opt,
        "memory-proportional": _memory_proportional,
        "communication-blind": _communication_blind,
        "algorithm-1": _algorithm_1,
        "algorithm-2": _algorithm_2,
    }
    return {name: _checked(model, rule) for name, rule in rules.items()}


def cloud_of(model: CostModel) -> str | None:
    """The device beside the source that computes a layer fastest; None where there is no other."""
    others = [device.name for device in model.profile.devices if device.name != model.source]
    # A layer in the middle where there is one: neither embedding nor head.
    middle = min(1, model.spec.num_layers - 1)
    return min(others, key=lambda name: model.decode_ms(name, LayerRange(middle, middle + 1)), default=None)


def _checked(model: CostModel, rule: Callable[[CostModel], Route]) -> Route | Infeasible:
    """The rule's route if devices and links bear it."""
    try:
        route = rule(model)
    except Infeasible as refused:
        return refused
    if model.privacy == "trusted-ends":
        route = _closed(route)
    causes = [*missing_memory(model, route), *_missing_links(model, route)]
    return Infeasible("it does not fit", causes) if causes else route


def missing_memory(model: CostModel, route: Route) -> list[str]:
    """What each device of a route lacks for its layers; empty when it fits."""
    causes = []
    for name in dict.fromkeys(stage.device for stage in route.stages):
        short_bytes = model.memory_used_bytes(name, route) - model.memory_available_bytes(name)
        if short_bytes > 0:
            held = " and ".join(str(stage.layers) for stage in route.stages if stage.device == name)
            causes.append(f"{name}: {-(-short_bytes // MIB)} MiB short for layers {held}")
    return causes


def _missing_links(model: CostModel, route: Route) -> list[str]:
    around = [*(stage.device for stage in route.stages), model.source]
    return [f"no link from {a} to {b}" for a, b in pairwise(around) if not np.isfinite(model.latency_ms(a, b))]


def _closed(route: Route) -> Route:
    """The route with its last layer on the source, which has the tokens then."""
    last = route.stages[-1]
    if last.device == route.source:
        return route
    stop = last.layers.stop
    shorter = () if len(last.layers) == 1 else (Stage(last.device, LayerRange(last.layers.start, stop - 1)),)
    before = route.stages[:-1] + shorter
    if before[-1].device == route.source:
        return replace(route, stages=(*before[:-1], Stage(route.source, LayerRange(before[-1].layers.start, stop))))
    return replace(route, stages=(*before, Stage(route.source, LayerRange(stop - 1, stop))))


# --- the rules --------------------------------------------------------------------------------------------------------


def solo(model: CostModel) -> Route:
    """Everything on the source (the paper's Edge-Solo)."""
    return _route_of([model.source], [model.spec.num_layers])


def _even(model: CostModel) -> Route:
    """As many layers each, over all devices that can hold their share, in their order, the source first."""
    layers = model.spec.num_layers
    names = [model.source, *(device.name for device in model.profile.devices if device.name != model.source)][:layers]
    causes: list[str] = []
    while True:
        share, rest = divmod(layers, len(names))
        route = _route_of(names, [share + (place < rest) for place in range(len(names))])
        lacking = missing_memory(model, route)
        if not lacking:
            return route
        causes += lacking
        tight = {cause.partition(":")[0] for cause in lacking}
        # Without them every share grows, so a source that is short stays short.
        if model.source in tight:
            raise Infeasible("equal shares do not fit", causes)
        names = [name for name in names if name not in tight]


def cloud_edge_even(model: CostModel) -> Route:
    """Half the layers on the source, half on the cloud (the paper's Cloud-Edge-Even)."""
    layers = model.spec.num_layers
    if layers < 2:
        raise Infeasible("one layer has no halves", [f"the model has {layers} layer"])
    return _route_of([model.source, _cloud(model)], [layers // 2, layers - layers // 2])


def cloud_edge_opt(model: CostModel) -> Route:
    """The best cut between source and cloud, or none (the paper's Cloud-Edge-Opt)."""
    found = cheapest_route(cloud_edge_problem(model, model.latency_problem()))
    if found is None:
        cloud = _cloud(model)
        raise Infeasible(f"{model.source} and {cloud} do not hold the model", [_rest_lacks(model, cloud)])
    return model.route(found.segments)


def cloud_edge_problem(model: CostModel, problem: Problem) -> Problem:
    """A problem of the model, with the source and the cloud alone."""
    cloud = _cloud(model)
    return limited(problem, [int(k == 0 or cloud in names) for k, names in enumerate(model.classes)])


def _memory_proportional(model: CostModel) -> Route:
    """Layers in proportion to memory, as the first release places them."""
    devices = [Device(device.name, model.memory_available_bytes(device.name)) for device in model.profile.devices]
    # What a range takes does not depend on the device.
    need = partial(model.memory_bytes, model.source)
    placed = proportional_layers(devices, model.spec.num_layers, need, model.source)
    return Route(tuple(Stage(device.name, layers) for device, layers in placed))


def _communication_blind(model: CostModel) -> Route:
    """The optimum where hops cost nothing; what it really costs shows what they are worth."""
    problem = model.latency_problem()
    free = replace(
        problem,
        hop_cost=np.zeros_like(problem.hop_cost),
        hop_cost_per_byte=np.where(np.isfinite(problem.hop_cost_per_byte), 0.0, np.inf),
        return_cost=np.where(np.isfinite(problem.return_cost), 0.0, np.inf),
    )
    found = cheapest_route(free)
    if found is None:
        raise Infeasible("nothing fits", shortages(model))
    return model.route(found.segments)


def _algorithm_1(model: CostModel) -> Route:
    """EdgeShard's Algorithm 1 as printed."""
    found = algorithm_1(expanded(model.latency_problem())[0])
    cause = "its line 13 charges every device for every layer, on the best path or not"
    return _published(model, found, "Algorithm 1 as printed finds no plan", cause)


def _algorithm_2(model: CostModel) -> Route:
    """EdgeShard's Algorithm 2 as printed, for one row per micro-batch."""
    devices, layers = len(model.profile.devices), model.spec.num_layers
    steps = algorithm_2_steps(layers, devices)
    if steps > MOST_STEPS:
        # A float ends at 1,000 devices.
        text = f"2^M states: {devices} devices and {layers} layers make {Decimal(steps):.1e} steps"
        raise Infeasible("Algorithm 2 is not run", [text])
    found = algorithm_2(expanded(model.pipeline_problem(1, model.workload.sessions))[0])
    cause = "its line 15 accepts no stage that is slower than the ones before, and the source holds one layer"
    return _published(model, found, "Algorithm 2 as printed finds no plan", cause)


def _published(model: CostModel, found: PublishedPlan | None, summary: str, cause: str) -> Route:
    if found is None:
        raise Infeasible(summary, [cause])
    names = [name for members in model.classes for name in members]
    return Route(tuple(_stage(names[piece.device_class], piece) for piece in found.segments))


# --- small things -----------------------------------------------------------------------------------------------------


def _stage(name: str, segment: Segment) -> Stage:
    return Stage(name, LayerRange(segment.start, segment.stop))


def _cloud(model: CostModel) -> str:
    cloud = cloud_of(model)
    if cloud is None:
        raise Infeasible("there is no other device", [f"{model.source} is the only device"])
    return cloud


def _rest_lacks(model: CostModel, cloud: str) -> str:
    """What is short when the source holds all it can and the cloud the rest."""
    layers, available = model.spec.num_layers, model.memory_available_bytes(model.source)
    fits = partial(model.memory_bytes, model.source)
    held = bisect_right(range(1, layers), available, key=lambda count: fits(LayerRange(0, count)))
    if held == 0:
        short_bytes = fits(LayerRange(0, 1)) - available
        return f"{model.source}: {-(-short_bytes // MIB)} MiB short for layers {LayerRange(0, 1)}"
    short = model.memory_bytes(cloud, LayerRange(held, layers)) - model.memory_available_bytes(cloud)
    if short <= 0:
        return f"memory would do, but no link joins {model.source} and {cloud} both ways"
    return f"{cloud}: {-(-short // MIB)} MiB short for layers {LayerRange(held, layers)} beside a full {model.source}"


def _route_of(names: Sequence[str], counts: Sequence[int]) -> Route:
    stops = list(accumulate(counts))
    ranges = [LayerRange(stop - count, stop) for count, stop in zip(counts, stops, strict=True)]
    return Route(tuple(Stage(name, layers) for name, layers in zip(names, ranges, strict=True)))
