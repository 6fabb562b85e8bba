"""This machine by what its kernel says: memory, cores, boot, board. Linux files first, psutil elsewhere.

Every file's text is parsed by a pure function; readers take the file system root so that tests can bring their own.
"""

from __future__ import annotations

import os
import platform
import uuid
from collections.abc import Iterable
from pathlib import Path

_ROOT = Path("/")
RESERVE_MIN_BYTES = 1 << 30
RESERVE_SHARE = 0.08
"""What is left to the rest of the machine: on a small board 1 GiB, on a big one 8 % of its memory."""


def memory_available_bytes(root: Path = _ROOT) -> int:
    """MemAvailable: what can be had without swapping; swap is never counted."""
    return _memory(root)[0]


def memory_total_bytes(root: Path = _ROOT) -> int:
    return _memory(root)[1]


def model_memory_bytes(limit_bytes: int = 0, root: Path = _ROOT, *, held_bytes: int = 0) -> int:
    """What a model may take here: available memory less the reserve, or the owner's limit where that is less.

    `held_bytes` is what a loaded model holds now and the next one gets back.
    """
    available, total = _memory(root)
    available += held_bytes
    if limit_bytes:
        return min(limit_bytes, available)
    return max(0, available - max(RESERVE_MIN_BYTES, int(RESERVE_SHARE * total)))


def has_nvidia_device(root: Path = _ROOT) -> bool:
    """Whether the kernel shows an NVIDIA GPU: a discrete one, or a Jetson's. Says nothing of whether it works."""
    return any((root / "dev" / name).exists() for name in ("nvidiactl", "nvhost-gpu", "nvgpu", "nvhost-ctrl-gpu"))


def parse_meminfo(text: str) -> dict[str, int]:
    """/proc/meminfo in bytes by field name; lines without a number are left out."""
    fields = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        amount, *unit = value.split() or ["-"]
        if amount.isdecimal():
            fields[name] = int(amount) * (1024 if unit == ["kB"] else 1)
    return fields


def physical_cores(root: Path = _ROOT, usable: Iterable[int] | None = None) -> int:
    """Cores this process may run on, hardware threads of one core counted once."""
    if usable is None:
        usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    processors = list(usable)
    siblings = {_text(root / f"sys/devices/system/cpu/cpu{n}/topology/thread_siblings_list") for n in processors}
    return len(siblings) if "" not in siblings else max(1, len(processors))


def boot_id(root: Path = _ROOT) -> str:
    """Equal for two processes exactly when they share a machine and a boot, and so its monotonic clock.

    Elsewhere than on Linux it is made of the machine's address and the time of its boot.
    """
    on_linux = _text(root / "proc/sys/kernel/random/boot_id")
    if on_linux:
        return on_linux
    import psutil  # Linux never needs it

    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"{uuid.getnode()}-{int(psutil.boot_time())}"))


def board_model(root: Path = _ROOT) -> str:
    """The board as its device tree or firmware names it, else the processor architecture."""
    for path in ("proc/device-tree/model", "sys/firmware/devicetree/base/model", "sys/class/dmi/id/product_name"):
        if name := _text(root / path):
            return name
    return platform.machine()


def _memory(root: Path) -> tuple[int, int]:
    """(available, total) bytes."""
    fields = parse_meminfo(_text(root / "proc/meminfo"))
    if "MemAvailable" in fields and "MemTotal" in fields:
        return fields["MemAvailable"], fields["MemTotal"]
    import psutil  # Linux never needs it

    memory = psutil.virtual_memory()
    return memory.available, memory.total


def _text(path: Path) -> str:
    """A small kernel file without its trailing NUL and newline, empty when it is not there."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    except OSError:
        return ""
