"""EdgeShard's Table IV and Figures 7 to 10 (arXiv 2405.14371) computed with our planner on the calibrated testbed.

The paper's numbers, and what each of ours is worth, are in `catalog/edgeshard-table-iv.toml`. Nothing here is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from planner.baselines import missing_memory
from planner.catalog import packaged_table
from planner.cost import CostModel
from planner.errors import Infeasible
from planner.latency import cheapest_route
from planner.paper_methods import (
    METHODS,
    Cell,
    Method,
    best_tokens_per_s,
    least_ms_per_token,
    paper_model,
    route_of,
    value_of,
)
from planner.pipeline import bubbles_rate, no_bubbles_rate
from planner.published import Algorithm1Reading, algorithm_1, expanded
from planner.types import Route


@dataclass(frozen=True, slots=True)
class Reproduced:
    """A cell and our number for it."""

    cell: Cell
    ours: float | None
    """None: out of memory."""
    route: Route | None
    fits: bool
    """False with a number: what the number would be if it fitted, for a cell marked infeasible."""

    @property
    def difference(self) -> float | None:
        """Relative; None where one of the two has no number."""
        if self.ours is None or self.cell.paper is None:
            return None
        return self.ours / self.cell.paper - 1


@dataclass(frozen=True, slots=True)
class Series:
    """A line of a figure: one value per x, None where nothing fits."""

    name: str
    values: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Study:
    """One figure as numbers."""

    figure: str
    title: str
    x_label: str
    x: tuple[str, ...]
    y_label: str
    series: tuple[Series, ...]
    note: str = ""
    """What the paper says of it, or what ours rests on."""


@dataclass(frozen=True, slots=True)
class Reproduction:
    """All of it."""

    title: str
    rows: tuple[Reproduced, ...]
    studies: tuple[Study, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bandwidth:
    mbit_per_s: tuple[int, ...]
    models: tuple[str, ...]
    paper: str
    paper_rate: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    model: str
    sources: tuple[str, ...]
    paper: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    title: str
    rows: tuple[Cell, ...]
    bandwidth: _Bandwidth
    source: _Source
    bubbles: tuple[Cell, ...]


def reproduce() -> Reproduction:
    """Every row and study, in a second or two."""
    table = _table()
    return Reproduction(
        table.title,
        tuple(map(reproduced, table.rows)),
        (
            *_by_bandwidth(table.bandwidth),
            *_by_source(table.source),
            _bubbles(table.bubbles),
            _algorithm_1(table.bandwidth.models),
        ),
    )


def table_iv() -> tuple[Reproduced, ...]:
    """Table IV alone."""
    return tuple(map(reproduced, _table().rows))


def _table() -> _File:
    return packaged_table("catalog", "edgeshard-table-iv", _File)


def reproduced(cell: Cell) -> Reproduced:
    """Our number for one cell of Table IV."""
    model = paper_model(cell.model)
    try:
        route = route_of(model, cell)
    except Infeasible:
        return Reproduced(cell, None, None, fits=False)
    fits = not missing_memory(model, route)
    if not fits and cell.paper is None:
        return Reproduced(cell, None, None, fits=False)
    return Reproduced(cell, value_of(model, cell, route), route, fits)


# --- studies ----------------------------------------------------------------------------------------------------------


def _lines(
    models: Sequence[str], x: Sequence[float], value: Callable[[str, Method, float], float | None]
) -> tuple[Series, ...]:
    """A line per model and method, without those that never fit."""
    lines = [
        Series(f"{model} {method}", tuple(value(model, method, at) for at in x))
        for model in models
        for method in METHODS
        if method != "edge-solo"
    ]
    return tuple(line for line in lines if any(number is not None for number in line.values))


def _by_bandwidth(setting: _Bandwidth) -> tuple[Study, Study]:
    """Figures 7 and 8."""
    title = "by the bandwidth between source and cloud"
    sessions = paper_model(setting.models[0]).workload.sessions
    x = tuple(map(str, setting.mbit_per_s))

    def model(name: str, mbit_per_s: float) -> CostModel:
        return paper_model(name, cloud_mbit_per_s=mbit_per_s)

    latency = _lines(setting.models, setting.mbit_per_s, lambda name, how, at: least_ms_per_token(model(name, at), how))
    rate = _lines(setting.models, setting.mbit_per_s, lambda name, how, at: best_tokens_per_s(model(name, at), how))
    return (
        Study("figure 7", f"latency {title}", "Mbit/s", x, "ms per token", latency, f"the paper: {setting.paper}"),
        Study(
            "figure 8",
            f"throughput {title}, {sessions} sequences",
            "Mbit/s",
            x,
            "tokens per second",
            rate,
            f"the paper: {setting.paper_rate}",
        ),
    )


def _by_source(setting: _Source) -> tuple[Study, Study]:
    """Figure 9, its two halves. KV cache is reserved for one sequence where one is timed."""
    alone = {source: paper_model(setting.model, source=source, sessions=1) for source in setting.sources}
    full = {source: paper_model(setting.model, source=source) for source in setting.sources}
    title = f"by source, {setting.model}"
    sessions = paper_model(setting.model).workload.sessions

    def lines(value: Callable[[CostModel, Method], float | None], models: dict[str, CostModel]) -> tuple[Series, ...]:
        return tuple(Series(method, tuple(value(model, method) for model in models.values())) for method in METHODS)

    latency, rate = lines(least_ms_per_token, alone), lines(best_tokens_per_s, full)
    return (
        Study(
            "figure 9",
            f"latency {title}",
            "source",
            setting.sources,
            "ms per token",
            latency,
            f"the paper: {setting.paper}",
        ),
        Study(
            "figure 9",
            f"throughput {title}, {sessions} sequences",
            "source",
            setting.sources,
            "tokens per second",
            rate,
        ),
    )


def _bubbles(cells: Sequence[Cell]) -> Study:
    """Rates with and without a barrier after each round."""
    routes = [route_of(paper_model(cell.model), cell) for cell in cells]
    times = [paper_model(cell.model).times(route, cell.rows) for cell, route in zip(cells, routes, strict=True)]
    pairs = list(zip(cells, times, strict=True))
    without = [no_bubbles_rate(each, cell.micro_batches, cell.rows) for cell, each in pairs]
    with_bubbles = [bubbles_rate(each, cell.micro_batches, cell.rows) for cell, each in pairs]
    gains = [a - b for a, b in zip(without, with_bubbles, strict=True)]
    return Study(
        "figure 10",
        f"what bubbles cost, {cells[0].micro_batches} micro-batches of one row",
        "plan",
        tuple(f"{cell.model} {cell.method}" for cell in cells),
        "tokens per second",
        (
            Series("with bubbles", tuple(with_bubbles)),
            Series("without", tuple(without)),
            Series("gain", tuple(gains)),
            Series("gain in the paper", tuple(cell.paper for cell in cells)),
        ),
        "where memory does not suffice (13B cloud-edge-even) the rates are those it would have",
    )


def _algorithm_1(models: Sequence[str]) -> Study:
    """What Algorithm 1 believes its plans take, in three readings, beside the least there is."""
    problems = [paper_model(name).latency_problem() for name in models]

    def claimed(reading: Algorithm1Reading) -> tuple[float | None, ...]:
        found = (algorithm_1(expanded(problem)[0], reading) for problem in problems)
        return tuple(None if plan is None else plan.claimed_cost for plan in found)

    readings: tuple[Algorithm1Reading, ...] = ("printed", "once-per-cell", "along-the-path")
    best = (cheapest_route(problem) for problem in problems)
    return Study(
        "algorithm 1",
        "latency by who pays in its line 13, beside the optimum",
        "model",
        tuple(models),
        "ms per token",
        (
            *(Series(f"memory charged {reading}", claimed(reading)) for reading in readings),
            Series("optimum", tuple(None if found is None else found.cost for found in best)),
        ),
        "the paper: a plan for each model",
    )
