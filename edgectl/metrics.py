"""What GET /metrics shows: this server's own counts, and each device's telemetry as it last arrived.

One registry per app, nothing global. Device metrics are made at the scrape from the totals that agents report, under
the names of `agent.device.telemetry`; names an agent invents are not shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from agent.device.telemetry import BUCKETS_S, REFUSED_PREFIX, CounterName, HistogramName
from agent.errors import RefusalReason
from agent.wire.messages import HistogramSnapshot, Telemetry
from edgectl.adaptive.metrics import split_metrics
from edgectl.engine import Engine

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_FIRST_TOKEN_S = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 120.0)
_NEXT_TOKEN_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class Metrics:
    """Counts of one app; it is the `Observer` of every answer."""

    def __init__(self, engine: Engine) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "edge_http_requests", "HTTP requests answered", ["path", "status"], registry=self.registry
        )
        self._prompt_tokens = Counter("edge_prompt_tokens", "Prompt tokens accepted", registry=self.registry)
        self._tokens = Counter("edge_generated_tokens", "Tokens generated for clients", registry=self.registry)
        self._first = Histogram(
            "edge_time_to_first_token_seconds",
            "Request read to first token",
            buckets=_FIRST_TOKEN_S,
            registry=self.registry,
        )
        self._next = Histogram(
            "edge_time_per_token_seconds",
            "One token to the next of a session",
            buckets=_NEXT_TOKEN_S,
            registry=self.registry,
        )
        self._active = Gauge("edge_sessions_open", "Sessions open now", registry=self.registry)
        self._ended = Counter(
            "edge_sessions", "Sessions ended: stop, length, cancelled or failed", ["outcome"], registry=self.registry
        )
        self.registry.register(_DeviceCollector(engine))

    def request_answered(self, path: str, status: int) -> None:
        """`path` must be one of a few known ones: each makes a time series."""
        self._requests.labels(path, str(status)).inc()

    def prompt_accepted(self, tokens: int) -> None:
        self._prompt_tokens.inc(tokens)

    def session_opened(self) -> None:
        self._active.inc()

    def token(self, since_start_s: float, since_last_s: float | None) -> None:
        self._tokens.inc()
        if since_last_s is None:
            self._first.observe(since_start_s)
        else:
            self._next.observe(since_last_s)

    def session_ended(self, outcome: str) -> None:
        self._active.dec()
        self._ended.labels(outcome).inc()

    def render(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)


class _DeviceCollector(Collector):
    """Health and device telemetry, read from the engine at each scrape."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not ask an engine that may not run yet."""
        return ()

    def collect(self) -> Iterator[Metric]:
        health = self._engine.health()
        for name, value, meaning in (
            ("edge_ready", float(health.ready), "1 when a session opened now would run"),
            ("edge_devices_connected", float(health.devices_connected), "Devices of the plan that are connected"),
            ("edge_devices_expected", float(health.devices_expected), "Devices of the plan"),
        ):
            yield GaugeMetricFamily(name, meaning, value=value)
        yield from self._load()
        telemetry = dict(self._engine.telemetry())
        for histogram in get_args(HistogramName):
            family = HistogramMetricFamily(f"edge_{histogram}", _meaning(histogram), labels=["device"])
            for device, totals in telemetry.items():
                snapshot = totals.histograms.get(histogram)
                # An agent of another version may have other buckets: its numbers would be wrong under ours.
                if snapshot is not None and len(snapshot.counts) == len(BUCKETS_S) + 1:
                    family.add_metric([device], _cumulative(snapshot), snapshot.sum)
            yield family
        for counter in get_args(CounterName):
            counts = CounterMetricFamily(f"edge_{counter}", _meaning(counter), labels=["device"])
            for device, totals in telemetry.items():
                counts.add_metric([device], totals.counters.get(counter, 0))
            yield counts
        refused = CounterMetricFamily("edge_frames_refused", "Data frames refused", labels=["device", "reason"])
        for device, totals in telemetry.items():
            for reason in RefusalReason:
                refused.add_metric([device, reason.value], totals.counters.get(REFUSED_PREFIX + reason.value, 0))
        yield refused
        yield from _links(telemetry)
        yield from split_metrics(self._engine.splits())

    def _load(self) -> Iterator[Metric]:
        load = self._engine.load()
        yield GaugeMetricFamily("edge_rows", "Sessions that can run at a time", value=load.rows)
        yield GaugeMetricFamily("edge_rows_in_use", "Sessions that run", value=load.rows_in_use)
        queued = GaugeMetricFamily("edge_sessions_queued", "Sessions that wait for a row", labels=["key"])
        for key, count in load.queued_by_key.items():
            queued.add_metric([key], count)
        yield queued
        if load.expected_wait_s is not None:
            meaning = "How long a session that came now would wait for a row"
            yield GaugeMetricFamily("edge_expected_wait_seconds", meaning, value=load.expected_wait_s)


def _links(telemetry: Mapping[str, Telemetry]) -> Iterator[Metric]:
    """Links between devices as they are now; what is not known has no series, nor has a peer that is no device."""
    labels = ["device", "peer"]
    rtt = GaugeMetricFamily("edge_link_rtt_seconds", "Smoothed round trip to a peer", labels=labels)
    goodput = GaugeMetricFamily("edge_link_goodput_bytes_per_second", "What a peer acknowledges", labels=labels)
    for device, measured in telemetry.items():
        for link in measured.links:
            if link.peer not in telemetry:
                continue
            if link.rtt_ms is not None:
                rtt.add_metric([device, link.peer], link.rtt_ms / 1e3)
            if link.goodput_bytes_per_s is not None:
                goodput.add_metric([device, link.peer], link.goodput_bytes_per_s)
    yield rtt
    yield goodput


def _meaning(name: str) -> str:
    return f"{name.replace('_', ' ').capitalize()} of each device, since its worker started"


def _cumulative(snapshot: HistogramSnapshot) -> list[tuple[str, float]]:
    """Prometheus' buckets: how many were at most each bound."""
    buckets: list[tuple[str, float]] = []
    total = 0
    for bound, count in zip((*(f"{bound:.6g}" for bound in BUCKETS_S), "+Inf"), snapshot.counts, strict=True):
        total += count
        buckets.append((bound, total))
    return buckets
