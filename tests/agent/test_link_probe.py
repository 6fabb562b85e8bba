"""A link's numbers from round trips over links of known speed, and over real sockets."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.compute.kernels import crc32c
from agent.effects import Connect, Disconnect, Effect, Notify, Send
from agent.errors import ConfigError
from agent.link_probe import CONNECT_S, SILENCE_S, LinkProbe, fit_line, link_profile
from agent.wire import codec
from agent.wire.codec import Frame, FrameKind
from agent.wire.events import Connected, Disconnected, Refused, Replied
from agent.wire.measure_messages import LinkMeasured, MeasureLink, MeasureProgress
from agent.wire.messages import Failed
from planner.profile import LinkProfile
from tests.fakes.agent_process import Coordinator, agent

REQUEST = MeasureLink(3, "d2", "tcp://h:1", "k" * 40, ((1, 2048), (16, 2048), (128, 2048)), "fp16", 2.0)
ME = "probe of d2"


def pong(sent_ns: int) -> Replied:
    return Replied(ME, codec.encode(Frame(FrameKind.PONG, 0, 0, 0, sent_ns=sent_ns), crc32c))


class Line:
    """Answers every frame after the time that a link of this speed takes; keeps the clock."""

    def __init__(
        self, request: MeasureLink, there_s: Callable[[int], float], back_s: float = 0.0, waking_s: float = 0.0
    ) -> None:
        self.streamed = 0
        """How often the probe has emptied the caches."""
        self.paused = 0
        """After how many answers it has paused."""
        self.probe = LinkProbe(request, "d1", 0.0, self._stream)
        self.now_s = 0.0
        self.sent: list[Frame] = []
        self.notices: list[Any] = []
        self._there_s = there_s
        self._waking_s = waking_s
        self._is_asleep = False
        self._back_s = back_s
        assert self.probe.start() == [Connect(ME, "tcp://h:1", "k" * 40)]

    def perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(peer, frame):
                    assert peer == ME
                    self.sent.append(frame)
                case Notify(message):
                    self.notices.append(message)
                case _:
                    assert effect == Disconnect(ME)

    def run(self, frames: int = 10_000) -> None:
        self.perform(self.probe.on_event(Connected(ME, False), self.now_s))
        self._send_what_is_due()
        for count in itertools.count():
            if self.probe.is_done or count == frames:
                return
            assert len(self.sent) == count + 1, "one frame is under way at a time"
            self.now_s += self._there_s(len(self.sent[-1].payload)) + self._back_s + self._waking_s * self._is_asleep
            self.perform(self.probe.on_event(pong(self.sent[-1].sent_ns), self.now_s))
            self._send_what_is_due()

    def _stream(self) -> None:
        self.streamed += 1

    def _send_what_is_due(self) -> None:
        assert self.probe.due_s is not None
        self.paused += self.probe.due_s > self.now_s
        self._is_asleep = self.probe.due_s > self.now_s
        self.now_s = self.probe.due_s
        self.perform(self.probe.tick(self.now_s))

    def link(self) -> LinkProfile:
        (measured,) = (notice for notice in self.notices if isinstance(notice, LinkMeasured))
        assert measured.request == REQUEST.request
        return measured.link


@given(latency_ms=st.floats(0.01, 100.0), megabytes_per_s=st.floats(2.0, 10_000.0))
def test_a_link_of_known_speed_is_found(latency_ms: float, megabytes_per_s: float) -> None:
    request = msgspec.structs.replace(REQUEST, seconds=10.0)
    line = Line(request, lambda size: latency_ms / 1e3 + size / megabytes_per_s / 1e6, latency_ms / 1e3)
    line.run()
    link = line.link()
    assert (link.source, link.destination) == ("d1", "d2")
    assert link.latency_ms == pytest.approx(latency_ms, rel=1e-6)
    assert link.bandwidth_bytes_per_s == pytest.approx(megabytes_per_s * 1e6, rel=1e-3)
    assert link.rtt_p50_ms == pytest.approx(2 * latency_ms)
    assert link.rtt_p95_ms == pytest.approx(2 * latency_ms)
    assert link.jitter_ms == pytest.approx(0.0, abs=1e-9)


def test_waking_the_receiver_up_is_part_of_the_way_there_only() -> None:
    line = Line(REQUEST, lambda size: 0.0001 + size / 1e9, 0.0001, waking_s=0.0003)
    line.run()
    assert line.link().latency_ms == pytest.approx(0.4)
    assert line.link().bandwidth_bytes_per_s == pytest.approx(1e9)
    assert line.link().rtt_p50_ms == pytest.approx(0.5)


def test_caches_are_emptied_before_every_pause_and_at_no_other_time() -> None:
    line = Line(REQUEST, lambda size: 1e-4 + size / 1e9)
    line.run()
    assert 0 < line.paused < len(line.sent)
    assert line.streamed == line.paused


def test_frames_are_what_serving_sends() -> None:
    line = Line(REQUEST, lambda size: 1e-4 + size / 1e9)
    line.run()
    kinds = {(frame.kind, frame.shape, len(frame.payload)) for frame in line.sent}
    sizes = {(FrameKind.PROBE, (1, tokens, 2048), 2 * tokens * 2048) for tokens in (1, 16, 128)}
    assert kinds == sizes | {(FrameKind.PING, (0, 0, 0), 0)}
    for frame in line.sent:
        assert codec.decode(codec.encode(frame, crc32c), crc32c) == frame
    assert len({frame.sent_ns for frame in line.sent}) == len(line.sent)


@pytest.mark.parametrize("bytes_per_s", [2_000, 20_000, 125_000, 1_000_000])
def test_a_slow_link_takes_the_time_allowed_and_sends_no_frame_for_long(bytes_per_s: float) -> None:
    request = msgspec.structs.replace(REQUEST, sizes=((1, 2048), (16, 2048), (128, 5120)), seconds=10.0)
    line = Line(request, lambda size: 0.03 + size / bytes_per_s, 0.03)
    line.run()
    assert line.now_s < 10.0 + 2.1
    longest = max(len(frame.payload) for frame in line.sent)
    assert longest == 4096 or longest / bytes_per_s < 2.5, "three seconds without a heartbeat end a connection"
    link = line.link()
    # With one size alone, and that in its warm-up, there is nothing better than a bound.
    if bytes_per_s >= 20_000:
        assert link.bandwidth_bytes_per_s == pytest.approx(bytes_per_s, rel=0.01)


def test_medians_withstand_stalls() -> None:
    number = itertools.count()
    line = Line(REQUEST, lambda size: 1e-3 + size / 1e8 + (0.05 if next(number) % 5 == 0 else 0.0), 1e-3)
    line.run()
    assert line.link().latency_ms == pytest.approx(1.0, rel=0.01)
    assert line.link().bandwidth_bytes_per_s == pytest.approx(1e8, rel=0.01)
    assert line.link().jitter_ms > 10


def test_only_the_pong_of_what_is_under_way_counts() -> None:
    line = Line(REQUEST, lambda size: 1e-3)
    line.run(frames=1)
    under_way = line.sent[-1].sent_ns
    refusal = codec.encode(Frame(FrameKind.REFUSAL, 0, 0, 0, sent_ns=under_way), crc32c)
    for event in (pong(under_way - 1), Replied(ME, refusal), Replied(ME, [b"", b""]), Disconnected(ME)):
        assert line.probe.owns(event)
        assert line.probe.on_event(event, 5.0) == []
        assert line.probe.due_s is None, "the answer is still awaited"
    assert not line.probe.owns(Replied("d2", []))
    assert not line.probe.owns(Connected("d2", False))


def test_after_a_lost_connection_it_goes_on() -> None:
    line = Line(REQUEST, lambda size: 1e-3)
    line.run(frames=20)
    lost = line.sent[-1].sent_ns
    line.perform(line.probe.on_event(Disconnected(ME), line.now_s))
    line.perform(line.probe.on_event(Connected(ME, True), line.now_s + 0.1))
    line.perform(line.probe.tick(line.now_s + 0.1))
    assert line.sent[-1].sent_ns > lost
    assert line.probe.on_event(pong(lost), line.now_s + 0.2) == []


@pytest.mark.parametrize(("refuses", "words"), [(False, "cannot be reached"), (True, "refuses this device's key")])
def test_a_peer_that_does_not_connect_fails_with_the_cause(refuses: bool, words: str) -> None:
    line = Line(REQUEST, lambda size: 0.0)
    if refuses:
        line.perform(line.probe.on_event(Refused(ME), 1.0))
    line.perform(line.probe.tick(CONNECT_S - 0.1))
    assert line.notices == [MeasureProgress("link to d2", 2, 2)]
    line.perform(line.probe.tick(CONNECT_S + 0.1))
    failed = line.notices[-1]
    assert isinstance(failed, Failed)
    assert (failed.request, failed.code, failed.detail) == (
        "measure-link",
        "peer_unreachable",
        f"d1: d2 at tcp://h:1 {words}",
    )
    assert line.probe.is_done
    assert line.probe.tick(CONNECT_S + 1) == line.probe.on_event(Connected(ME, False), CONNECT_S + 1) == []


def test_a_peer_that_falls_silent_gives_what_was_measured_or_a_cause() -> None:
    silent = Line(REQUEST, lambda size: 0.001)
    silent.run(frames=0)
    silent.perform(silent.probe.tick(SILENCE_S + 3.0))
    assert isinstance(silent.notices[-1], Failed)
    assert silent.notices[-1].code == "no_answer"

    some = Line(REQUEST, lambda size: 0.001 + size / 1e7)
    some.run(frames=230)
    some.perform(some.probe.tick(some.now_s + SILENCE_S + 3.0))
    assert some.link().bandwidth_bytes_per_s == pytest.approx(1e7, rel=0.01)


def test_a_peer_that_answers_pings_only_has_no_bandwidth() -> None:
    line = Line(REQUEST, lambda size: 0.001)
    line.run(frames=200)
    assert line.sent[-1].kind is FrameKind.PROBE
    line.perform(line.probe.tick(REQUEST.seconds + SILENCE_S + 1.0))
    assert isinstance(line.notices[-1], Failed)
    assert line.notices[-1].detail.startswith("d1: d2 answered no frame with hidden states")


def test_a_peer_that_only_ever_connects_again_is_given_up() -> None:
    line = Line(REQUEST, lambda size: 0.001)
    for now_s in range(100):
        line.perform(line.probe.on_event(Connected(ME, now_s > 0), now_s))
        line.perform(line.probe.tick(now_s))
        if line.probe.is_done:
            break
    assert now_s == REQUEST.seconds + SILENCE_S + 1
    assert isinstance(line.notices[-1], Failed)


@given(
    st.lists(st.tuples(st.integers(0, 1 << 22), st.floats(1e-6, 10.0)), min_size=1, max_size=6),
)
def test_the_line_is_never_negative_and_nothing_nearby_is_better(points: list[tuple[int, float]]) -> None:
    start, slope = fit_line(points)
    assert start >= 0
    assert slope >= 0

    def error(start: float, slope: float) -> float:
        return sum(((start + slope * size) / seconds - 1) ** 2 for size, seconds in points)

    best = error(start, slope)
    random = np.random.Generator(np.random.PCG64(1))
    for factor_a, factor_b in 1 + 0.01 * random.standard_normal((20, 2)):
        assert error(start * factor_a, slope * factor_b) >= best - 1e-9 * max(1.0, best)


def test_one_ping_is_enough_for_a_profile() -> None:
    link = link_profile("a", "b", 0.004, [0.004], [])
    assert (link.latency_ms, link.jitter_ms, link.bandwidth_bytes_per_s) == (2.0, None, pytest.approx(1e11))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"peer": "d1"}, "no link to itself"),
        ({"seconds": 0.0}, "seconds"),
        ({"seconds": float("nan")}, "seconds"),
        ({"seconds": float("inf")}, "seconds"),
        ({"seconds": 1e9}, "seconds"),
        ({"sizes": ()}, "sizes"),
        ({"sizes": ((1, 64),) * 17}, "17 entries"),
        ({"sizes": ((4096, 65536),)}, "536870912 bytes together"),
        ({"sizes": ((1024, 8192),) * 5}, "83886080 bytes together"),
        ({"sizes": ((0, 64),)}, "sizes"),
        ({"sizes": ((1, 1 << 20),)}, "sizes"),
    ],
)
def test_a_request_without_sense_names_its_field(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        LinkProbe(msgspec.structs.replace(REQUEST, **changes), "d1", 0.0)


def test_two_agents_measure_each_other(tmp_path: Path) -> None:
    """Neither has a model loaded; both directions run at the same time."""

    async def everything() -> None:
        with closing(Coordinator()) as coordinator, ExitStack() as running:
            agents = []
            for name in ("d1", "d2"):
                one = running.enter_context(agent(tmp_path / name, name, coordinator.endpoint, coordinator.keys.public))
                coordinator.allowed.allow(one.public_key, name)
                agents.append(one)
            await coordinator.welcome(*agents)
            for one, other in (agents, agents[::-1]):
                request = msgspec.structs.replace(
                    REQUEST,
                    peer=other.name,
                    endpoint=coordinator.hellos[other.name].data_endpoint,
                    key=other.public_key,
                    seconds=0.5,
                )
                await coordinator.tell(one.name, request)
            for one, other in (agents, agents[::-1]):
                link = (await coordinator.next(LinkMeasured, one.name)).link
                assert (link.source, link.destination) == (one.name, other.name)
                assert 0.0 < link.latency_ms < 50.0
                assert link.bandwidth_bytes_per_s > 1e6
            await coordinator.tell("d1", msgspec.structs.replace(REQUEST, endpoint="nowhere"))
            assert (await coordinator.next(Failed)).request == "measure-link"
            for one in agents:
                assert one.stop()[0] == 0
                assert "Traceback" not in one.log()

    asyncio.run(everything())
