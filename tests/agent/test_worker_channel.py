"""The pipe between supervisor and worker: whatever way bytes are cut, messages come whole, and an end is noticed."""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.config import AgentConfig
from agent.errors import BadMessage, ConfigError
from agent.wire import messages
from agent.wire.addresses import PeerKey
from agent.wire.message import Message
from agent.wire.messages import Failed, Load, Loaded, LoadProgress, Telemetry, Unload, Welcome
from agent.worker_channel import (
    ChannelClosed,
    Configure,
    FromWorker,
    Stop,
    Superseded,
    ToWorker,
    WorkerChannel,
    WorkerReady,
    WorkerTick,
    run_child,
)


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def framed(message: Message) -> bytes:
    data = messages.encode(message)
    return struct.pack("<I", len(data)) + data


SENT: list[Message] = [
    WorkerReady("tcp://127.0.0.1:1", "cpu"),
    WorkerTick(3, "", 5, Telemetry()),
    LoadProgress("m", 1, 2),
    Loaded("m", "d" * 64, 7, 0.5),
    Failed("load", "x", "y" * 3000),
]


@given(cuts=st.lists(st.integers(1, 400), max_size=40))
def test_messages_come_whole_however_the_stream_is_cut(cuts: list[int]) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        stream = b"".join(map(framed, SENT))
        channel = WorkerChannel(theirs)
        came: list[Message] = []
        for cut in [*cuts, len(stream)]:
            piece, stream = stream[:cut], stream[cut:]
            if piece:
                ours.sendall(piece)
                came += channel.receive(FromWorker)
        assert came == SENT


def test_a_message_longer_than_one_read_passes(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = WorkerChannel(ends[0]), WorkerChannel(ends[1])
    peers = tuple(PeerKey(f"device-{n}", "k" * 40) for n in range(1500))
    ours.send(Welcome(1, "0.1.0", peers))
    assert theirs.wait(ToWorker) == Welcome(1, "0.1.0", peers)


def test_wait_leaves_what_came_with_it(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = WorkerChannel(ends[0]), WorkerChannel(ends[1])
    load = Load("m", "d", ((0, 2),), "fp32", 32, "fp16", 1, 8)
    for message in (Stop(), load, Unload()):
        ours.send(message)
    assert theirs.wait(Stop) == Stop()
    assert select.select([theirs], [], [], 0)[0], "or nobody would be told of what follows"
    assert theirs.receive(ToWorker) == [load, Unload()]
    assert not select.select([theirs], [], [], 0)[0]


@pytest.mark.parametrize("partly", [b"", b"\x01", struct.pack("<I", 9) + b"abc"])
def test_the_end_of_the_other_process_is_noticed(ends: tuple[socket.socket, socket.socket], partly: bytes) -> None:
    ours, theirs = ends
    channel = WorkerChannel(theirs)
    ours.sendall(partly)
    ours.close()
    if partly:
        assert channel.receive(ToWorker) == []
    with pytest.raises(ChannelClosed):
        channel.receive(ToWorker)
    with pytest.raises(ChannelClosed):
        channel.send(Stop())


def test_a_closed_channel_stays_closed(ends: tuple[socket.socket, socket.socket]) -> None:
    channel = WorkerChannel(ends[0])
    assert channel.fileno() == ends[0].fileno()
    channel.close()
    with pytest.raises(ChannelClosed):
        channel.wait(ToWorker)


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<I", messages.MAX_CONTROL_BYTES + 1),
        struct.pack("<I", 1) + b"\xc1",
        framed(Stop()),
        framed(WorkerReady("x", "y")).replace(b"worker-ready", b"worker-reedy"),
    ],
)
def test_what_a_worker_does_not_say_is_refused(ends: tuple[socket.socket, socket.socket], data: bytes) -> None:
    ends[0].sendall(data)
    with pytest.raises(BadMessage):
        WorkerChannel(ends[1]).receive(FromWorker)


def test_the_configuration_arrives_as_the_supervisor_read_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = AgentConfig(
        name="d1", models_dir=Path("models"), key_file=Path("/keys/a"), threads=3, memory_limit="6 GiB", spinning=True
    )
    message = messages.encode(Configure.of(config))
    monkeypatch.chdir("/")  # where a worker runs
    came = messages.decode(message, Configure).config()
    assert came.models_dir == tmp_path / "models"
    assert isinstance(came.cache_dir, Path)
    for name in AgentConfig.__struct_fields__:
        if not isinstance(getattr(config, name), Path):
            assert getattr(came, name) == getattr(config, name)


def test_what_ends_a_measurement_is_seen_and_left_to_be_received(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    channel = WorkerChannel(theirs)
    channel.check_superseded()
    welcome = Welcome(2, "1", ())
    first, second = framed(welcome), framed(Unload())
    ours.sendall(first + second[:7])
    channel.check_superseded()
    assert channel.receive(ToWorker) == [welcome]
    channel.check_superseded()
    ours.sendall(second[7:] + first)
    for _ in range(2):
        with pytest.raises(Superseded):
            channel.check_superseded()
    assert channel.receive(ToWorker) == [Unload(), welcome]
    ours.sendall(struct.pack("<I", 1) + b"x" + framed(Stop()))
    with pytest.raises(Superseded):
        channel.check_superseded()


def test_a_pipe_that_is_closed_supersedes_nothing(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    channel = WorkerChannel(theirs)
    ours.close()
    channel.check_superseded()


@pytest.mark.parametrize(
    ("problem", "status"), [(None, 0), (ConfigError("no such key"), 1), (ChannelClosed(), 0)], ids=str
)
def test_a_child_ends_with_the_status_of_what_it_ran(problem: Exception | None, status: int) -> None:
    ours, theirs = socket.socketpair()
    channel = WorkerChannel(ours)
    channel.send(Configure.of(AgentConfig(name="d1")))
    names = []

    def run(config: AgentConfig, _: WorkerChannel) -> None:
        names.append(config.name)
        if problem is not None:
            raise problem

    assert run_child(theirs.detach(), "weights", run) == status
    assert names == ["d1"]
    channel.close()


def test_a_child_whose_parent_is_gone_before_it_began_ends_quietly() -> None:
    ours, theirs = socket.socketpair()
    ours.close()
    assert run_child(theirs.detach(), "worker", lambda config, channel: None) == 0
