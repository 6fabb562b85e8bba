from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from agent.device.telemetry import BUCKETS_S, TelemetryRecorder
from agent.errors import RefusalReason
from agent.wire.link_report import LinkObservation
from agent.wire.messages import HistogramSnapshot, Telemetry
from edgectl.engine import ServerLoad
from edgectl.metrics import Metrics
from tests.fakes.fake_engine import FakeEngine, Script


def samples(metrics: Metrics) -> dict[tuple[str, tuple[str, ...]], float]:
    families = text_string_to_metric_families(metrics.render().decode())
    return {
        (sample.name, tuple(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def test_devices_telemetry_becomes_histograms_and_counters() -> None:
    recorder = TelemetryRecorder()
    for seconds in (0.001, 0.002, 1000.0):
        recorder.observe("decode_compute_seconds", seconds)
    recorder.observe("decode_wire_seconds", 0.01)
    recorder.refused(RefusalReason.CRC)
    recorder.add("frames_sent", 5)
    engine = FakeEngine(lambda _: Script(), device_telemetry={"pi": recorder.snapshot()})
    found = samples(Metrics(engine))
    assert found["edge_decode_compute_seconds_count", ("pi",)] == 3
    assert found["edge_decode_compute_seconds_sum", ("pi",)] == 1000.003
    assert found["edge_decode_compute_seconds_bucket", ("pi", "+Inf")] == 3
    assert found["edge_decode_compute_seconds_bucket", ("pi", f"{BUCKETS_S[-1]:g}")] == 2
    assert found["edge_decode_wire_seconds_count", ("pi",)] == 1
    assert found["edge_frames_refused_total", ("pi", "crc")] == 1
    assert found["edge_frames_refused_total", ("pi", "gap")] == 0
    assert found["edge_frames_sent_total", ("pi",)] == 5
    assert found["edge_devices_expected", ()] == 3


def test_buckets_never_shrink() -> None:
    recorder = TelemetryRecorder()
    for power in range(-60, 30):
        recorder.observe("decode_step_seconds", 10 ** (power / 10))
    found = samples(Metrics(FakeEngine(lambda _: Script(), device_telemetry={"pi": recorder.snapshot()})))
    buckets = [value for (name, _), value in found.items() if name == "edge_decode_step_seconds_bucket"]
    assert len(buckets) == len(BUCKETS_S) + 1
    assert buckets == sorted(buckets)
    assert buckets[-1] == 90


def test_names_and_buckets_that_an_agent_invents_are_not_shown() -> None:
    odd = Telemetry(
        histograms={"decode_compute_seconds": HistogramSnapshot((1, 2), 0.1), "x\n": HistogramSnapshot((), 0.0)},
        counters={'evil{"': 1, "frames_refused:made_up": 3},
    )
    text = Metrics(FakeEngine(lambda _: Script(), device_telemetry={"pi": odd})).render().decode()
    assert "evil" not in text
    assert "made_up" not in text
    assert "edge_decode_compute_seconds_count{" not in text


def test_sessions_and_requests_are_counted_per_app() -> None:
    engine = FakeEngine(lambda _: Script(), ready=False)
    metrics, other = Metrics(engine), Metrics(engine)
    metrics.session_opened()
    metrics.token(0.3, None)
    metrics.token(0.4, 0.1)
    metrics.prompt_accepted(7)
    metrics.request_answered("/v1/completions", 200)
    assert samples(metrics)["edge_sessions_open", ()] == 1
    metrics.session_ended("stop")
    found = samples(metrics)
    assert found["edge_sessions_open", ()] == 0
    assert found["edge_sessions_total", ("stop",)] == 1
    assert found["edge_generated_tokens_total", ()] == 2
    assert found["edge_prompt_tokens_total", ()] == 7
    assert found["edge_time_to_first_token_seconds_count", ()] == 1
    assert found["edge_time_per_token_seconds_sum", ()] == 0.1
    assert found["edge_http_requests_total", ("/v1/completions", "200")] == 1
    assert found["edge_ready", ()] == 0
    assert samples(other)["edge_generated_tokens_total", ()] == 0


def test_how_full_it_is() -> None:
    engine = FakeEngine(lambda _: Script())
    engine.server_load = ServerLoad(8, 5, {"0a1b2c": 3}, 2.5)
    shown = Metrics(engine).render().decode()
    for line in (
        "edge_rows 8.0",
        "edge_rows_in_use 5.0",
        'edge_sessions_queued{key="0a1b2c"} 3.0',
        "edge_expected_wait_seconds 2.5",
    ):
        assert line in shown
    engine.server_load = ServerLoad(8, 5, {}, None)
    assert "edge_expected_wait_seconds" not in Metrics(engine).render().decode()


def test_links_have_a_series_where_something_is_known_of_them() -> None:
    links = (LinkObservation("b", 12.5, goodput_bytes_per_s=1e6), LinkObservation('evil{"', 1.0), LinkObservation("a"))
    telemetry = {"a": Telemetry(links=links), "b": Telemetry()}
    found = samples(Metrics(FakeEngine(lambda _: Script(), device_telemetry=telemetry)))
    assert found["edge_link_rtt_seconds", ("a", "b")] == 0.0125
    assert found["edge_link_goodput_bytes_per_second", ("a", "b")] == 1e6
    assert len([name for name, _ in found if name.startswith("edge_link")]) == 2
