"""Plans as JSON: what `edgectl plan --json` prints, and what `edgectl serve --plan` reads of it.

Keys are only ever added. Reading takes what a plan is executed by and leaves the rest alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import msgspec

from planner.answer import Answer
from planner.errors import BadPlan
from planner.placement import UNITS
from planner.prediction import Prediction, StagePrediction
from planner.types import Allotment, BoundaryType, Codec, LayerRange, Plan, Quantization, Route, Stage, StageCost

MOST_BYTES = 4 << 20
"""Of a file; one with 200 stages and all baselines has 100 KiB."""
_MOST_LAYERS = 4096
_MOST_ROWS = 1 << 16
_MOST_MEMORY_BYTES = 1 << 53
"""Larger integers are not the same in every reader of JSON."""


# --- writing ----------------------------------------------------------------------------------------------------------


def answer_as_json(answer: Answer) -> dict[str, object]:
    """One object of JSON types; what is unknown or endless is null."""
    plan, request = answer.plan, answer.request
    return {
        "model": plan.model,
        "objective": request.objective,
        "stages": [_stage(stage) for stage in answer.prediction.stages],
        "predicted": _predicted(answer.prediction),
        "baselines": {
            name: _rates(found) if isinstance(found, Prediction) else {"infeasible": list(found)}
            for name, found in answer.baselines.items()
        },
        "routes": [_route(route) for route in plan.routes],
        "lower_bound": _number(answer.lower_bound),
        "gap": _number(answer.gap),
        "optimal": answer.optimal,
        "advice": list(answer.advice),
        # --- what the numbers above are about ---
        "value": _number(answer.value),
        "unit": UNITS[request.objective],
        "notes": list(answer.sentences),
        "source": plan.routes[0].source,
        "privacy": request.privacy,
        "quantization": plan.quantization,
        "block_size": plan.block_size,
        "boundary": plan.boundary,
        "codec": plan.codec,
        "context": plan.context,
        "prompt": request.workload.prompt,
        "tokens": request.workload.tokens,
        "sessions": answer.sessions,
        "batch": "auto" if request.batch is None else request.batch,
        "estimated": answer.estimated,
        "allotments": [
            {
                "device": each.device,
                "resident": [[layers.start, layers.stop] for layers in each.resident],
                "slots": each.slots,
                "memory_bytes": each.memory_bytes,
                "memory_available_bytes": each.memory_available_bytes,
            }
            for each in plan.allotments
        ],
        "pareto": [
            {"round_ms": _number(point.round_ms), "tokens_per_s": _number(point.tokens_per_s)} | _route(point.route)
            for point in answer.pareto
        ],
    }


def _stage(stage: StagePrediction) -> dict[str, object]:
    return {
        "device": stage.device,
        "layers": [stage.layers.start, stage.layers.stop],
        "memory_bytes": stage.memory_bytes,
        "memory_available_bytes": stage.memory_available_bytes,
        "compute_ms": _number(stage.compute_ms),
        "hop_ms": _number(stage.hop_ms),
        "wait_ms": _number(stage.wait_ms),
    }


def _predicted(prediction: Prediction) -> dict[str, float | None]:
    return _rates(prediction) | {
        "time_to_first_token_ms": _number(prediction.time_to_first_token_ms),
        "joules_per_token": _number(prediction.joules_per_token),
    }


def _rates(prediction: Prediction) -> dict[str, float | None]:
    return {
        "ms_per_token": _number(prediction.ms_per_token),
        "tokens_per_s": _number(prediction.tokens_per_s),
    }


def _route(route: Route) -> dict[str, object]:
    return {
        "stages": [
            {"device": stage.device, "layers": [stage.layers.start, stage.layers.stop]} for stage in route.stages
        ],
        "micro_batches": route.micro_batches,
        "rows": route.rows,
    }


def _number(value: float | None) -> float | None:
    """Nine digits: more than any clock gives, few enough that rounding of sums does not show."""
    return float(f"{value:.9g}") if value is not None and math.isfinite(value) else None


# --- reading ----------------------------------------------------------------------------------------------------------

_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
_Edge = Annotated[int, msgspec.Meta(ge=0, le=_MOST_LAYERS)]
_Rows = Annotated[int, msgspec.Meta(ge=1, le=_MOST_ROWS)]
_Bytes = Annotated[int, msgspec.Meta(ge=0, le=_MOST_MEMORY_BYTES)]
_Positive = Annotated[int, msgspec.Meta(ge=1, le=1 << 24)]
_Milliseconds = Annotated[float, msgspec.Meta(ge=0)]


class _Edges(NamedTuple):
    start: _Edge
    stop: _Edge


class _StageFile(msgspec.Struct):
    device: _Name
    layers: _Edges


class _RouteFile(msgspec.Struct):
    stages: Annotated[list[_StageFile], msgspec.Meta(min_length=1, max_length=_MOST_LAYERS)]
    micro_batches: _Rows = 1
    rows: _Rows = 1


class _AllotmentFile(msgspec.Struct):
    device: _Name
    resident: Annotated[list[_Edges], msgspec.Meta(min_length=1, max_length=_MOST_LAYERS)]
    slots: _Rows
    memory_bytes: _Bytes
    memory_available_bytes: _Bytes


class _CostFile(msgspec.Struct):
    compute_ms: _Milliseconds | None = None
    hop_ms: _Milliseconds | None = None
    wait_ms: _Milliseconds | None = 0.0


class _PlanFile(msgspec.Struct):
    model: _Name
    quantization: Quantization
    block_size: _Positive
    boundary: BoundaryType
    codec: Codec
    context: _Positive
    routes: Annotated[list[_RouteFile], msgspec.Meta(min_length=1, max_length=1000)]
    allotments: Annotated[list[_AllotmentFile], msgspec.Meta(min_length=1, max_length=1000)]
    predicted: dict[str, float | None] = {}
    stages: list[_CostFile] = []


def parse_plan(text: str) -> Plan:
    """The plan of `answer_as_json`. Raises BadPlan naming the field."""
    if len(text) > MOST_BYTES:
        raise BadPlan("", f"{len(text)} characters, at most {MOST_BYTES}")
    try:
        raw: Any = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as problem:
        raise BadPlan("", f"not JSON: {problem}") from None
    if not isinstance(raw, Mapping):
        raise BadPlan("", "not a JSON object")
    try:
        file = msgspec.convert(raw, _PlanFile)
    except msgspec.ValidationError as problem:
        message, _, place = str(problem).partition(" - at `$")
        raise BadPlan(place.rstrip("`").lstrip("."), message) from None
    routes = tuple(_read_route(route, f"routes[{index}]") for index, route in enumerate(file.routes))
    _check_routes(routes)
    return Plan(
        model=file.model,
        quantization=file.quantization,
        block_size=file.block_size,
        boundary=file.boundary,
        codec=file.codec,
        context=file.context,
        routes=routes,
        allotments=_read_allotments(file.allotments, routes),
        predicted=_read_predicted(file.predicted),
        costs=_read_costs(file.stages, len(routes[0].stages)),
    )


def _read_route(route: _RouteFile, place: str) -> Route:
    stages, expected = [], 0
    for index, stage in enumerate(route.stages):
        layers = _range(stage.layers, f"{place}.stages[{index}].layers")
        if layers.start != expected:
            raise BadPlan(f"{place}.stages[{index}].layers", f"begin at {layers.start}, expected {expected}")
        expected = layers.stop
        stages.append(Stage(stage.device, layers))
    return Route(tuple(stages), micro_batches=route.micro_batches, rows=route.rows)


def _check_routes(routes: tuple[Route, ...]) -> None:
    for index, route in enumerate(routes):
        if route.layers != routes[0].layers:
            raise BadPlan(f"routes[{index}].stages", f"cover {route.layers}, those of routes[0] {routes[0].layers}")


def _read_allotments(files: list[_AllotmentFile], routes: tuple[Route, ...]) -> tuple[Allotment, ...]:
    found: dict[str, Allotment] = {}
    for index, file in enumerate(files):
        place = f"allotments[{index}]"
        if file.device in found:
            raise BadPlan(f"{place}.device", f"{file.device} is there twice")
        resident = tuple(_range(edges, f"{place}.resident[{nth}]") for nth, edges in enumerate(file.resident))
        found[file.device] = Allotment(
            file.device, resident, file.slots, file.memory_bytes, file.memory_available_bytes
        )
    for nth, route in enumerate(routes):
        for index, stage in enumerate(route.stages):
            place = f"routes[{nth}].stages[{index}]"
            if stage.device not in found:
                raise BadPlan(f"{place}.device", f"{stage.device} has no entry in allotments")
            if not any(layers.covers(stage.layers) for layers in found[stage.device].resident):
                raise BadPlan(f"{place}.layers", f"{stage.layers} are not resident on {stage.device}")
    return tuple(found.values())


def _read_predicted(values: dict[str, float | None]) -> dict[str, float]:
    known = {name: value for name, value in values.items() if value is not None}
    for name, value in known.items():
        if not 0 <= value < math.inf:
            raise BadPlan(f"predicted.{name}", f"must be a number from 0, it is {value!r}")
    return known


def _read_costs(stages: list[_CostFile], expected: int) -> tuple[StageCost, ...]:
    """Costs of the first route; none where the file does not have them all."""
    costs = [
        StageCost(stage.compute_ms, stage.hop_ms, stage.wait_ms or 0.0)
        for stage in stages
        if stage.compute_ms is not None and stage.hop_ms is not None
    ]
    return tuple(costs) if len(costs) == expected else ()


def _range(edges: _Edges, place: str) -> LayerRange:
    if edges.start >= edges.stop:
        raise BadPlan(place, f"[{edges.start}, {edges.stop}) is empty or negative")
    return LayerRange(edges.start, edges.stop)
