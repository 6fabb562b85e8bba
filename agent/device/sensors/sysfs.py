"""Small readers of the kernel's files that several sensors share: numbers, temperatures, processor clocks.

All take the file system's root, so that tests bring their own. A value that cannot be read is a reason, see Missing.
"""

from __future__ import annotations

from pathlib import Path

OFFLINE_MILLI_C = -200_000
"""A sensor without power reads -256000."""


class Missing(Exception):
    """A value that cannot be read; the message is the reason."""


def read_text(path: Path) -> str:
    """A kernel file without its trailing NULs and newline; NULs between strings become spaces. Raises Missing."""
    try:
        return path.read_bytes().rstrip(b"\0\n ").replace(b"\0", b" ").decode("utf-8", "replace")
    except PermissionError:
        raise Missing(f"{path.name} may be read by root only") from None
    except FileNotFoundError:
        raise Missing(f"there is no {path}") from None
    except OSError as problem:
        raise Missing(f"{path.name} cannot be read: {problem.strerror or problem}") from None


def read_number(path: Path) -> float:
    """The number a kernel file holds. Raises Missing."""
    text = read_text(path)
    try:
        return float(int(text))
    except ValueError:
        raise Missing(f"{path.name} holds {text[:40]!r}, no number") from None


def matching(folder: Path, pattern: str) -> list[Path]:
    """Paths in a stable order; none where the folder is missing or closed."""
    try:
        return sorted(folder.glob(pattern))
    except OSError:
        return []


def cpu_clock_mhz(root: Path, name: str = "scaling_cur_freq") -> float:
    """Of the fastest core that is on; `name` may be that of a limit. Raises Missing."""
    clocks = []
    reason = "the kernel has no cpufreq here"
    for path in matching(root / "sys/devices/system/cpu", f"cpu[0-9]*/cpufreq/{name}"):
        try:
            clocks.append(read_number(path) / 1000)
        except Missing as missing:
            reason = str(missing)
    if not clocks:
        raise Missing(reason)
    return max(clocks)


def temperatures_c(root: Path) -> tuple[dict[str, float], dict[str, str]]:
    """(degrees by zone, reason by `temperatures_c.<zone>`) of the thermal zones; names in lower case, no `-therm`."""
    values: dict[str, float] = {}
    reasons: dict[str, str] = {}
    for zone in matching(root / "sys/class/thermal", "thermal_zone*"):
        try:
            name = read_text(zone / "type").lower().removesuffix("-thermal").removesuffix("-therm")
        except Missing:
            continue
        try:
            milli = read_number(zone / "temp")
        except Missing as missing:
            reasons[f"temperatures_c.{name}"] = f"{missing}; its unit may be switched off"
            continue
        if milli <= OFFLINE_MILLI_C:
            reasons[f"temperatures_c.{name}"] = "the sensor is offline"
        else:
            values[name] = milli / 1000
    if not values:
        reasons["temperatures_c"] = "no thermal zone is readable"
    return values, reasons
