"""One hop on loopback with CURVE, from the start of packing to the end of unpacking, on the project's own path.

    python benchmarks/bench_hop.py [--out FILE.json] [--rounds N]

Two processes send a frame back and forth: pack, encode, send, receive, decode, unpack, and the same again on the way
back; half of that is one hop. The bytes that arrive are compared with those that were sent. `bare` is the same bytes
on bare ZeroMQ sockets with CURVE that two processes bounce in the same run: what the machine can do at that hour.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import zmq
from numpy.typing import NDArray
from report import write_report

from agent.compute import kernels
from agent.wire import codec
from agent.wire.codec import Buffer, CodecId, Frame, FrameKind, RowRef
from agent.wire.data_plane import DataPlane
from agent.wire.events import Connected, Received
from agent.wire.security import AllowList, KeyPair, generate_keys

HIDDEN_SIZE = 4096
TOKENS = (1, 8, 128)
"""A decode step and two prefill chunks: 8 KiB, 64 KiB and 1 MiB in fp16."""
TARGET_US = 100.0
"""For the decode step, at the median. Four threads wake each other in a hop, so the figure moves with what a wake-up
costs: the target was set where bare sockets took 41 µs, hence the ratio beside it."""
WARM_UP = 50
TURNS = 5


@dataclass(frozen=True)
class Hop:
    tokens: int
    payload_bytes: int
    rounds: int
    p50_us: float
    p99_us: float
    bare_p50_us: float
    """Half a round trip of bare sockets with blocking receives: what is left is ours."""
    pack_encode_us: float
    """Median of what the sender computes."""
    decode_unpack_us: float
    """Median of what the receiver computes."""


def to_parts(hidden: NDArray[np.float32]) -> list[Buffer]:
    """The sender's half: hidden states to message parts."""
    _, tokens, _ = hidden.shape
    frame = Frame(
        FrameKind.DECODE if tokens == 1 else FrameKind.PREFILL,
        micro_batch=1,
        epoch=1 << 32,
        step=1000,
        rows=(RowRef(0, 3, 500),),
        start_layer=8,
        codec=CodecId.FP16,
        shape=(1, tokens, HIDDEN_SIZE),
        answered=999,
        sent_ns=time.monotonic_ns(),
        payload=kernels.pack(hidden, "fp16").data,
    )
    return codec.encode(frame, kernels.crc32c)


def to_hidden(parts: list[Buffer]) -> NDArray[np.float32]:
    """The receiver's half: message parts to hidden states."""
    frame = codec.decode(parts, kernels.crc32c)
    return kernels.unpack(frame.payload, "fp16", frame.shape)


def receive(plane: DataPlane) -> list[Buffer]:
    while True:
        for event in plane.poll(None):
            if isinstance(event, Received):
                return event.parts


def wait_connected(plane: DataPlane) -> None:
    """Until this process is connected; nothing may come before that, so the parent waits for its message."""
    while not any(isinstance(event, Connected) for event in plane.poll(None)):
        pass


def wait_ready(plane: DataPlane) -> None:
    """Until this process is connected and the other one, once it is, has said so."""
    missing: set[type] = {Connected, Received}
    while missing:
        missing -= {type(event) for event in plane.poll(None)}


def echo() -> None:
    """The other process: told everything on standard input, ends with its parent's message of one byte."""
    told = json.loads(sys.stdin.readline())
    allow = AllowList({told["peer_key"]: "parent"})
    with closing(DataPlane(KeyPair(told["public"], told["secret"]), allow, "tcp://127.0.0.1:0")) as plane:
        print(plane.endpoint, flush=True)
        plane.connect("parent", told["peer_endpoint"], told["peer_key"])
        wait_connected(plane)
        plane.send("parent", [b"ready"])
        while True:
            parts = receive(plane)
            if len(parts) == 1:
                return
            if not plane.send("parent", to_parts(to_hidden(parts))):
                raise SystemExit("the connection to the parent was lost")


class BareSockets:
    """A ROUTER to receive and a DEALER to send, as a stage has them, with nothing of the project around them."""

    def __init__(self, keys: KeyPair) -> None:
        self._keys = keys
        self._context = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        self._dealer = self._context.socket(zmq.DEALER)
        for socket in (self._router, self._dealer):
            socket.linger = 0
            socket.curve_publickey, socket.curve_secretkey = keys.public.encode(), keys.secret.encode()
        self._router.curve_server = True
        self.endpoint = f"tcp://127.0.0.1:{self._router.bind_to_random_port('tcp://127.0.0.1')}"

    def connect(self, endpoint: str, key: str) -> None:
        self._dealer.curve_serverkey = key.encode()
        self._dealer.connect(endpoint)

    def send(self, parts: list[Buffer]) -> None:
        self._dealer.send_multipart(parts)

    def receive(self) -> list[bytes]:
        return self._router.recv_multipart()[1:]

    def close(self) -> None:
        self._context.destroy()


def echo_bare() -> None:
    """As `echo`, for bare sockets."""
    told = json.loads(sys.stdin.readline())
    with closing(BareSockets(KeyPair(told["public"], told["secret"]))) as sockets:
        print(sockets.endpoint, flush=True)
        sockets.connect(told["peer_endpoint"], told["peer_key"])
        while len(parts := sockets.receive()) > 1:
            sockets.send(list(parts))


def half_round_trips_us(round_trip: Callable[[], object], rounds: int) -> list[float]:
    samples = []
    for number in range(WARM_UP + rounds):
        started = time.perf_counter_ns()
        round_trip()
        ended = time.perf_counter_ns()
        if number >= WARM_UP:
            samples.append((ended - started) / 2e3)
    return samples


def measure(plane: DataPlane, bare: BareSockets, tokens: int, rounds: int) -> Hop:
    hidden = np.random.default_rng(tokens).standard_normal((1, tokens, HIDDEN_SIZE), dtype=np.float32)

    def there_and_back() -> NDArray[np.float32]:
        if not plane.send("echo", to_parts(hidden)):
            raise SystemExit("the connection to the other process was lost")
        return to_hidden(receive(plane))

    if not np.array_equal(there_and_back(), hidden.astype(np.float16).astype(np.float32)):
        raise SystemExit("what arrived is not what was sent")
    parts = to_parts(hidden)

    def bounce() -> None:
        bare.send(parts)
        bare.receive()

    hops_us: list[float] = []
    bare_us: list[float] = []
    for _ in range(TURNS):  # in turn, so that a noisy neighbour hits both
        hops_us += half_round_trips_us(there_and_back, rounds // TURNS)
        bare_us += half_round_trips_us(bounce, rounds // TURNS)
    return Hop(
        tokens=tokens,
        payload_bytes=len(parts[1]),
        rounds=rounds,
        p50_us=statistics.median(hops_us),
        p99_us=statistics.quantiles(hops_us, n=100)[98],
        bare_p50_us=statistics.median(bare_us),
        pack_encode_us=median_us(lambda: to_parts(hidden)),
        decode_unpack_us=median_us(lambda: to_hidden(parts)),
    )


def median_us(call: Callable[[], object], times: int = 301) -> float:
    samples = []
    for _ in range(times):
        started = time.perf_counter_ns()
        call()
        samples.append((time.perf_counter_ns() - started) / 1e3)
    return statistics.median(samples)


@contextmanager
def other_process(option: str, endpoint: str, ours: KeyPair, theirs: KeyPair) -> Iterator[str]:
    """This file again in another process; gives its endpoint."""
    told = {"peer_key": ours.public, "peer_endpoint": endpoint, **asdict(theirs)}
    command = [sys.executable, __file__, option]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(told) + "\n")
        process.stdin.flush()
        yield process.stdout.readline().strip()
    if process.returncode != 0:
        raise SystemExit(f"the other process ended with status {process.returncode}")


def run(rounds: int) -> list[Hop]:
    """Measure all sizes against one other process of each sort."""
    ours, theirs = generate_keys(), generate_keys()
    with (
        closing(DataPlane(ours, AllowList({theirs.public: "echo"}), "tcp://127.0.0.1:0")) as plane,
        closing(BareSockets(ours)) as bare,
        other_process("--echo", plane.endpoint, ours, theirs) as echo_endpoint,
        other_process("--echo-bare", bare.endpoint, ours, theirs) as bare_endpoint,
    ):
        plane.connect("echo", echo_endpoint, theirs.public)
        bare.connect(bare_endpoint, theirs.public)
        wait_ready(plane)
        hops = [measure(plane, bare, tokens, rounds if tokens < 128 else rounds // 10) for tokens in TOKENS]
        plane.send("echo", [b"."])
        bare.send([b"."])
        return hops


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, help="also write the numbers as JSON")
    parser.add_argument("--rounds", type=int, default=3000, help="frames per size, a tenth of it for 1 MiB")
    parser.add_argument("--echo", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--echo-bare", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.echo or arguments.echo_bare:
        (echo if arguments.echo else echo_bare)()
        return
    hops = run(arguments.rounds)
    rows = [{**asdict(hop), "ratio": hop.p50_us / hop.bare_p50_us} for hop in hops]
    facts = {
        "hop_p50_us": hops[0].p50_us,
        "target_us": TARGET_US,
        "reached": hops[0].p50_us <= TARGET_US,
        "kernels": kernels.active(),
        "hidden_size": HIDDEN_SIZE,
    }
    write_report("hop", rows, facts, arguments.out)


if __name__ == "__main__":
    main()
