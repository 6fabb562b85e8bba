"""Splits as Prometheus reads them."""

from __future__ import annotations

from collections import Counter

from prometheus_client.parser import text_string_to_metric_families

from edgectl.adaptive.metrics import split_metrics
from edgectl.adaptive.report import DecisionTimes, Outcome, SplitOfBatch, SplitReport
from edgectl.metrics import Metrics
from tests.fakes.fake_engine import FakeEngine, Script


def test_every_micro_batch_outcome_and_guard_has_a_series() -> None:
    times = DecisionTimes()
    for seconds in (3e-5, 3e-5, 4e-4, 1.0):
        times.observe(seconds)
    batches = (SplitOfBatch(0, 0, 4, 8), SplitOfBatch(1, 1, 16, None))
    moves: Counter[Outcome] = Counter({"moved": 3})
    report = SplitReport(batches, moves, Counter(dwell=2), times, 4096)
    text = Metrics(FakeEngine(lambda _: Script(), split_report=report)).render().decode()
    found = {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("edge_split")
    }
    assert found["edge_split_layers", ("0", "0")] == 4
    assert found["edge_split_layers", ("1", "1")] == 16
    assert found["edge_split_proposal", ("0", "0")] == 8
    assert ("edge_split_proposal", ("1", "1")) not in found
    assert found["edge_split_moves_total", ("moved",)] == 3
    assert found["edge_split_moves_total", ("kept",)] == 0
    assert found["edge_split_held_total", ("dwell",)] == 2
    assert found["edge_split_moved_bytes_total", ()] == 4096
    assert found["edge_split_decision_seconds_bucket", ("5e-05",)] == 2
    assert found["edge_split_decision_seconds_bucket", ("0.001",)] == 3
    assert found["edge_split_decision_seconds_bucket", ("+Inf",)] == 4
    assert found["edge_split_decision_seconds_count", ()] == 4


def test_a_server_that_moves_no_splits_shows_none() -> None:
    assert list(split_metrics(None)) == []
    assert "edge_split" not in Metrics(FakeEngine(lambda _: Script())).render().decode()
