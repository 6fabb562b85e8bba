"""Splits on /metrics: where they are, what is proposed, and what became of it. Nothing where no split can move."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from edgectl.adaptive.guards import GUARDS
from edgectl.adaptive.report import DECISION_BUCKETS_S, OUTCOMES, SplitReport

_PLACE = ["route", "micro_batch"]


def split_metrics(report: SplitReport | None) -> Iterator[Metric]:
    """Metric families of a report; every outcome and guard has its series from the start."""
    if report is None:
        return
    layers = GaugeMetricFamily("edge_split_layers", "Layers on the source of a route", labels=_PLACE)
    proposal = GaugeMetricFamily("edge_split_proposal", "Layers that the controller proposes there", labels=_PLACE)
    for batch in report.batches:
        place = [str(batch.route), str(batch.micro_batch)]
        layers.add_metric(place, batch.split)
        if batch.proposal is not None:
            proposal.add_metric(place, batch.proposal)
    yield layers
    yield proposal
    moves = CounterMetricFamily("edge_split_moves", "Moves of a split by what became of them", labels=["outcome"])
    for outcome in OUTCOMES:
        moves.add_metric([outcome], report.moves[outcome])
    yield moves
    held = CounterMetricFamily("edge_split_held", "Decisions that moved nothing by what held them", labels=["guard"])
    for guard in GUARDS:
        held.add_metric([guard], report.held[guard])
    yield held
    yield CounterMetricFamily(
        "edge_split_moved_bytes", "Keys and values that changed hands with a split", value=report.moved_bytes
    )
    bounds = [*(f"{bound:g}" for bound in DECISION_BUCKETS_S), "+Inf"]
    decisions = HistogramMetricFamily("edge_split_decision_seconds", "To decide where a split should be")
    buckets = list(zip(bounds, map(float, accumulate(report.decisions.counts)), strict=True))
    decisions.add_metric([], buckets, report.decisions.sum_s)
    yield decisions
