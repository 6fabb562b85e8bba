"""One model on devices of this machine that stand apart: over emulated links, in network namespaces, or not at all.

The first two are two answers to one question, the sender's and the kernel's: their figures should agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from itertools import permutations
from pathlib import Path
from typing import Any, Literal, get_args

from agent.config import toml_text
from edgectl.load.run import Wish, run_load
from edgectl.local_cluster import LocalCluster
from edgectl.local_processes import Processes
from edgectl.netns import Namespaces, Uplink

Way = Literal["loopback", "emulated", "namespaces"]
WAYS: tuple[Way, ...] = get_args(Way)
READY_PATIENCE_S = 300.0
BITS_PER_MBIT = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What runs, on how many devices, how far apart, under which load (a closed loop)."""

    model: Path
    devices: int
    uplink: Uplink
    """What leaves each device; emulated, what goes to each other one."""
    serve: tuple[str, ...] = ()
    """Further options of `edgectl serve`."""
    concurrency: int = 1
    sessions: int = 2
    prompt_tokens: int = 32
    output_tokens: int = 64


@contextmanager
def standing_apart(way: Way, setting: Setting, directory: Path) -> Iterator[LocalCluster]:
    """A cluster of this kind, ready to serve; its files are below `directory`.

    Raises ProcessFailed when it does not become ready, NamespacesUnavailable where there are none.
    """
    names = [f"device-{number}" for number in range(1, setting.devices + 1)]
    with ExitStack() as open_until_the_end:
        space = open_until_the_end.enter_context(Namespaces(names, setting.uplink)) if way == "namespaces" else None
        processes = open_until_the_end.enter_context(Processes(directory))
        cluster = LocalCluster(directory, processes)
        if space is not None:
            move_coordinator(cluster, space.here)
        for name in names:
            bound = {"bind": f"tcp://{space.address(name)}:0"} if space is not None else {}
            cluster.add_device(name, setting.model.parent, {"log_level": "warning", **bound})
        if way == "emulated":
            cluster.append(links_toml(names, setting.uplink))
        cluster.start_coordinator(setting.model, setting.serve)
        for name in names:
            cluster.start_device(name, space.prefix(name) if space is not None else ())
        cluster.wait_until_ready(READY_PATIENCE_S)
        yield cluster


def measure(cluster: LocalCluster, setting: Setting, seed: int = 0) -> dict[str, Any]:
    """What clients of a cluster saw, in the words of `edgectl bench serve`; medians over the sessions."""
    wish = Wish(
        url=cluster.url,
        concurrency=setting.concurrency,
        sessions=setting.sessions,
        warm_up=min(setting.concurrency, setting.sessions - 1),
        prompt_tokens=str(setting.prompt_tokens),
        output_tokens=str(setting.output_tokens),
        seed=seed,
    )
    report, _ = run_load(wish, {})
    medians = {name: (report[name] or {}).get("p50") for name in ("ms_per_token", "time_to_first_token_ms")}
    return {"tokens_per_s": report["tokens_per_s"], **medians, "failed": report["sessions"]["failed"]}


def compare(
    ways: Sequence[Way], setting: Setting, directory: Path, say: Callable[[str], object]
) -> list[dict[str, Any]]:
    """One row per way, one cluster after the other. Raises what `standing_apart` does."""
    rows = []
    for way in ways:
        say(f"{way}: starting {setting.devices} devices")
        below = directory / way
        below.mkdir()
        with standing_apart(way, setting, below) as cluster:
            rows.append({"way": way, **measure(cluster, setting)})
    return rows


def links_toml(names: Sequence[str], uplink: Uplink) -> str:
    """The [[links]] of cluster.toml between all of these devices."""
    shape = f"latency_ms = {uplink.latency_ms!r}\njitter_ms = {uplink.jitter_ms!r}\n"
    if uplink.bytes_per_s:
        mbit = f"{8 * uplink.bytes_per_s / BITS_PER_MBIT:.12g} Mbit"
        shape += toml_text({"rate": mbit, "burst": f"{uplink.burst_bytes} B"})
    return "".join(f"[[links]]\n{toml_text({'from': a, 'to': b})}{shape}\n" for a, b in permutations(names, 2))


def as_json(setting: Setting, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "benchmark": "edgectl bench netns",
        "setting": {**asdict(setting), "model": setting.model.name, "serve": list(setting.serve)},
        "ways": list(rows),
    }


def describe(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a table."""
    cells = [list(rows[0]), *([_text(value) for value in row.values()] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in cells)


def _text(value: object) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def move_coordinator(cluster: LocalCluster, host: str) -> None:
    """Bind it where the namespaces reach it; the API stays on loopback."""
    _, _, port = cluster.endpoint.rpartition(":")
    there = f"tcp://{host}:{port}"
    text = cluster.config.read_text(encoding="utf-8")
    cluster.config.write_text(text.replace(cluster.endpoint, there), encoding="utf-8")
    cluster.endpoint = there
