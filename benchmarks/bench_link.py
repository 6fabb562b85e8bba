"""What a link costs: fp16 against fp32 frames over 10 Mbit/s, and what emulating one adds where it should add nothing.

Two agents with one layer each of Llama-2-70B's width (8192) but little inside (512, int4): a row of a decode frame is
16 KiB in fp16, 13 ms of such a link, and computing it takes less. So the link is the bottleneck with 8 sessions at a
time; one session alone also waits for both stages and the answer, one after the other. One cluster per type stands at
the same time and the two take turns; links are emulated and, where the caller is root, network namespaces behind the
kernel's token bucket too.

    python benchmarks/bench_link.py --out benchmarks/results/link.json
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import random_model
from report import write_report

from agent.wire.addresses import LinkShape
from agent.wire.data_plane import DataPlane
from agent.wire.events import Event, Received, Replied
from agent.wire.security import AllowList, KeyPair, generate_keys
from edgectl.netns import NamespacesUnavailable, Uplink, check_machine
from edgectl.netns_bench import Setting, Way, measure, standing_apart

BYTES_PER_S = 1.25e6
MODEL = "random-wide"
CODECS = ("fp16", "fp32")
TARGET = 1.7
MOST_ADDED_MS = 0.3
HERE, THERE = "here", "there"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, default=Path(tempfile.gettempdir()) / "edgectl-bench-models")
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pings", type=int, default=400)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--echo", nargs=3, metavar=("PUBLIC", "SECRET", "PEER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.echo:
        echo(*options.echo)
        return
    emulation = {**added(options.pings), **long_run()}
    for name, value in emulation.items():
        print(f"{name}: {value}", file=sys.stderr)
    rows = []
    for way in ways():
        for concurrency in (options.concurrency, 1):
            rows += compared(way, concurrency, options)
            print(rows[-2:], file=sys.stderr)
    write_report(
        "link",
        rows,
        {
            "model": MODEL,
            "bytes_per_s": BYTES_PER_S,
            "target_ratio": TARGET,
            "target_added_ms": MOST_ADDED_MS,
            **emulation,
        },
        options.out,
    )


def ways() -> tuple[Way, ...]:
    try:
        check_machine()
    except NamespacesUnavailable as problem:
        print(f"without namespaces: {problem}", file=sys.stderr)
        return ("emulated",)
    return ("emulated", "namespaces")


def compared(way: Way, concurrency: int, options: argparse.Namespace) -> list[dict[str, object]]:
    """One row per codec; `ratio` is the median of tokens/s against fp32's over the rounds."""
    model = random_model.write(options.models, MODEL)
    rates: dict[str, list[float]] = {codec: [] for codec in CODECS}
    with ExitStack() as stack, tempfile.TemporaryDirectory() as directory:
        clusters = {}
        for codec in CODECS:
            setting = Setting(
                model=model,
                devices=2,
                uplink=Uplink(BYTES_PER_S),
                serve=("--quantize", "int4", "--context", "128", "--codec", codec, "--sessions", str(concurrency)),
                concurrency=concurrency,
                sessions=2 * concurrency,
                prompt_tokens=2,
                output_tokens=24,
            )
            below = Path(directory, codec)
            below.mkdir()
            clusters[codec] = (stack.enter_context(standing_apart(way, setting, below)), setting)
        for number in range(options.rounds + 1):
            for codec, (cluster, setting) in clusters.items():
                found = measure(cluster, setting, seed=number)
                if number:  # the first round warms up
                    rates[codec].append(found["tokens_per_s"])
    ratio = statistics.median(a / b for a, b in zip(rates["fp16"], rates["fp32"], strict=True))
    return [
        {
            "way": way,
            "sessions": concurrency,
            "codec": codec,
            "tokens_per_s": statistics.median(rates[codec]),
            "ratio": ratio if codec == "fp16" else None,
        }
        for codec in CODECS
    ]


def echo(public: str, secret: str, peer: str) -> None:
    """The other process: replies to what it receives with the time it came, without its payload."""
    with closing(DataPlane(KeyPair(public, secret), AllowList({peer: HERE}), "tcp://127.0.0.1:0")) as plane:
        print(plane.endpoint, flush=True)
        while True:
            for event in plane.poll(None):
                if isinstance(event, Received):
                    plane.reply(event.origin, [b"%d" % time.monotonic_ns(), b""])


@contextmanager
def connected() -> Iterator[DataPlane]:
    """A data plane of this process with a connection to one of another."""
    here, there = generate_keys(), generate_keys()
    command = [sys.executable, __file__, "--echo", there.public, there.secret, here.public]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            with closing(DataPlane(here, AllowList({there.public: THERE}), "tcp://127.0.0.1:0")) as plane:
                plane.connect(THERE, process.stdout.readline().strip(), there.public)
                until_connected(plane)
                yield plane
        finally:
            process.kill()


def until_connected(plane: DataPlane) -> None:
    while not plane.is_connected(THERE):
        plane.poll(100)


def replies(plane: DataPlane, count: int) -> list[int]:
    """When the other process says that it received the next frames, in ns of the clock that both have."""
    found: list[int] = []
    while len(found) < count:
        events: list[Event] = plane.poll(10_000)
        found += [int(bytes(event.parts[0])) for event in events if isinstance(event, Replied)]
    return found


def added(pings: int, payload_bytes: int = 16 << 10) -> dict[str, float]:
    """Milliseconds that an emulated link without rate and latency adds to one way, and one of 5 ms beyond its 5."""
    way_ms: dict[float | None, list[float]] = {None: [], 0.0: [], 5.0: []}
    with connected() as plane:
        for _ in range(4):
            for latency_ms, samples in way_ms.items():
                plane.emulate([] if latency_ms is None else [LinkShape(THERE, latency_ms=latency_ms)])
                until_connected(plane)
                for _ in range(pings // 4):
                    time.sleep(0.002)
                    sent_ns = time.monotonic_ns()
                    plane.send(THERE, [b"", bytes(payload_bytes)])
                    samples.append((replies(plane, 1)[0] - sent_ns) / 1e6)
    plain_ms, instant_ms, later_ms = (statistics.median(samples) for samples in way_ms.values())
    return {
        "one_way_ms": plain_ms,
        "added_ms": instant_ms - plain_ms,
        "added_beside_latency_ms": later_ms - 5.0 - plain_ms,
    }


def long_run(frames: int = 300, payload_bytes: int = 20_000) -> dict[str, float]:
    """Rate of a backlog on an emulated 10 Mbit/s link over what it should be."""
    with connected() as plane:
        plane.emulate([LinkShape(THERE, bytes_per_s=BYTES_PER_S)])
        until_connected(plane)
        arrived: list[int] = []
        sent = 0
        while len(arrived) < frames:
            while sent < min(frames, len(arrived) + 100):
                plane.send(THERE, [b"", bytes(payload_bytes)])
                sent += 1
            arrived += replies(plane, 1)
    # A busy machine reads some late, and none early: what the least late ones of both ends drift by is the link's.
    frame_ns = 1e9 * payload_bytes / BYTES_PER_S
    late_ns = [at - number * frame_ns for number, at in enumerate(arrived)]
    third = frames // 3
    drift_ns = min(late_ns[-third:]) - min(late_ns[:third])
    return {"long_run_rate": 1 / (1 + drift_ns / (frame_ns * (frames - third)))}


if __name__ == "__main__":
    main()
