"""The kernels against memcpy, NumPy and torch, one thread each: python benchmarks/bench_kernels.py --out FILE.json

Every case of a group runs once per round, in turn, so that a noisy neighbour hits all of them; medians over the
rounds, ratios within the group. A ratio is reference time / kernel time; for packing the reference is a memcpy that
reads and writes together as many bytes as packing does.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from report import write_report

from agent.compute import kernels
from agent.compute.kernels import Implementation

ROUNDS = 31
LARGE = (1024, 4096)
"""16 MiB of fp32: a prefill chunk of 1024 tokens at hidden size 4096."""
SMALL = (1, 1, 4096)
"""One decode step of one row."""

Run = Callable[[], object]


@dataclass(frozen=True)
class Group:
    """One operation: what the kernels are held against, and the ratio they must reach."""

    name: str
    moved_bytes: int
    kernel: Callable[[Implementation], Run]
    reference_name: str = ""
    reference: Run | None = None
    target: float | None = None
    calls: int = 1
    """Calls per timing; more for what takes microseconds."""


@dataclass(frozen=True)
class Result:
    operation: str
    kernel: str
    median_us: float
    gb_per_s: float
    reference: str
    reference_us: float | None
    ratio: float | None
    target: float | None


def timed_us(run: Run, calls: int) -> float:
    start = time.perf_counter_ns()
    for _ in range(calls):
        run()
    return (time.perf_counter_ns() - start) / 1e3 / calls


def measure(group: Group) -> list[Result]:
    runs = {name: group.kernel(using) for name, using in kernels.implementations().items() if name != "numpy"}
    if group.reference is not None:
        runs[group.reference_name] = group.reference
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        timed_us(run, group.calls)
    for _ in range(ROUNDS):
        for name, run in runs.items():
            times[name].append(timed_us(run, group.calls))
    medians = {name: statistics.median(values) for name, values in times.items()}
    reference_us = medians.pop(group.reference_name, None)
    return [
        Result(
            operation=group.name,
            kernel=name,
            median_us=round(median, 3),
            gb_per_s=round(group.moved_bytes / median / 1e3, 2),
            reference=group.reference_name,
            reference_us=None if reference_us is None else round(reference_us, 3),
            ratio=None if reference_us is None else round(reference_us / median, 2),
            target=group.target if name == kernels.active() else None,
        )
        for name, median in medians.items()
    ]


def wire_groups() -> list[Group]:
    hidden = np.random.default_rng(0).standard_normal(LARGE, dtype=np.float32)
    small = np.ascontiguousarray(hidden[:1]).reshape(SMALL)
    out = np.empty_like(hidden)
    groups = []
    for codec in ("fp16", "bf16", "int8", "int4"):
        payload = kernels.pack(hidden, codec)
        moved = hidden.nbytes + payload.nbytes
        source, target = np.ones(moved // 2, np.uint8), np.empty(moved // 2, np.uint8)

        def pack(using: Implementation, codec=codec, payload=payload) -> Run:
            return lambda: kernels.pack(hidden, codec, payload, using=using)

        def unpack(using: Implementation, codec=codec, payload=payload) -> Run:
            return lambda: kernels.unpack(payload, codec, LARGE, out, using=using)

        def memcpy(source=source, target=target) -> None:
            np.copyto(target, source)

        wanted = 0.7 if codec == "fp16" else None
        groups.append(Group(f"pack {codec}, 16 MiB", moved, pack, "memcpy, same bytes", memcpy, wanted))
        groups.append(Group(f"unpack {codec}, 16 MiB", moved, unpack, "memcpy, same bytes", memcpy))
    rounded, small_payload = hidden.copy(), kernels.pack(small, "fp16")
    groups += [
        Group(
            "round fp16, 16 MiB",
            2 * hidden.nbytes,
            lambda u: lambda: kernels.round_to_boundary(rounded, "fp16", using=u),
        ),
        Group("pack fp16, [1,1,4096]", 24576, lambda u: lambda: kernels.pack(small, "fp16", using=u), calls=2000),
        Group(
            "unpack fp16, [1,1,4096]",
            24576,
            lambda u: lambda: kernels.unpack(small_payload, "fp16", SMALL, using=u),
            calls=2000,
        ),
    ]
    for size, name, calls in ((8 << 10, "8 KiB", 1000), (2 << 20, "2 MiB", 10)):
        data = hidden.tobytes()[:size]
        groups.append(Group(f"crc32c, {name}", size, lambda u, d=data: lambda: kernels.crc32c(d, using=u), calls=calls))
    return groups


def damage_groups() -> list[Group]:
    hidden = np.random.default_rng(0).standard_normal(LARGE, dtype=np.float32)
    damaged = hidden.copy()
    rng = np.random.default_rng(1)

    def numpy_erase() -> object:
        return np.where(rng.random(hidden.shape) < 0.1, np.float32(0), hidden)

    def numpy_noise() -> object:
        return hidden + np.float32(0.1) * rng.standard_normal(hidden.shape, dtype=np.float32)

    def erase(using: Implementation) -> Run:
        return lambda: kernels.erase(damaged, 0.1, 1, 2, 3, using=using)

    def noise(using: Implementation) -> Run:
        return lambda: kernels.add_noise(damaged, 0.1, 1, 2, 3, using=using)

    moved = 2 * hidden.nbytes
    groups = [
        Group("erase, 16 MiB", moved, erase, "numpy where(random < p)", numpy_erase, 10.0),
        Group("noise, 16 MiB", moved, noise, "numpy standard_normal", numpy_noise),
    ]
    try:
        import torch
    except ModuleNotFoundError:
        return groups
    torch.set_num_threads(1)
    tensor, zero = torch.from_numpy(hidden), torch.zeros(())

    def torch_erase() -> object:
        return torch.where(torch.rand(tensor.shape) < 0.1, zero, tensor)

    def torch_noise() -> object:
        return tensor + 0.1 * torch.randn(tensor.shape)

    groups.append(Group("erase, 16 MiB", moved, erase, "torch where(rand < p)", torch_erase, 3.0))
    groups.append(Group("noise, 16 MiB", moved, noise, "torch randn", torch_noise))
    return groups


def conceal_groups() -> list[Group]:
    """One token of which a tenth was lost, against a direct solution in doubles."""
    groups = []
    for size, calls in ((128, 500), (1024, 50), (4096, 3)):
        rng = np.random.default_rng(0)
        # A tenth of an element depends on the others, as in the hidden states of the bundled model.
        precision = np.eye(size, dtype=np.float32) + rng.normal(scale=0.3 / size**0.5, size=(size, size)) / 2
        precision = np.ascontiguousarray((precision + precision.T) / 2, np.float32)
        mean, spread = np.zeros(size, np.float32), np.ones(size, np.float32)
        token, lost = rng.standard_normal((1, size), dtype=np.float32), rng.random((1, size)) < 0.1

        def conceal(using: Implementation, token=token, known=(lost, mean, spread, precision)) -> Run:
            return lambda: kernels.conceal(token, *known, using=using)

        def solve(token=token[0], lost=lost[0], precision=precision) -> object:
            among = precision[np.ix_(lost, lost)].astype(np.float64)
            return np.linalg.solve(among, -precision[lost] @ np.where(lost, 0, token))

        moved = int(lost.sum()) * 4 * size
        groups.append(Group(f"conceal, H {size}", moved, conceal, "numpy solve", solve, calls=calls))
    return groups


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the native kernels against memcpy, NumPy and torch.")
    parser.add_argument("--out", type=Path, help="write the results there as JSON")
    arguments = parser.parse_args()
    results = [result for group in [*wire_groups(), *damage_groups(), *conceal_groups()] for result in measure(group)]
    facts = {"active": kernels.active(), "rounds": ROUNDS, "numpy": np.__version__}
    write_report("kernels", [asdict(result) for result in results], facts, arguments.out)


if __name__ == "__main__":
    main()
