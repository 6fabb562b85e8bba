"""tegrastats as a sensor: the program is started in the foreground, its lines are read as they come.

Only the process started here is ever ended, by its id: `tegrastats --stop` would end everybody's. A line's moment is
its arrival; a line that is not yet whole is not read.
"""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections.abc import Callable
from typing import IO

from agent.device.sensors.rails import total_power_w
from agent.device.sensors.sample import POWER, Sample, no_sample
from agent.device.sensors.tegrastats_line import TegrastatsLine, parse_line

SOURCE = "tegrastats"
INTERVAL_MS = 100
FIRST_LINE_S = 3.0
"""How long the first sample waits for the first line."""

STALE_INTERVALS = 20
"""A program that wrote nothing for so many intervals is taken for stuck."""

LONGEST_LINE_BYTES = 16_384
END_S = 1.0
"""How long the program may take to end before it is killed."""


def sample_of(line: TegrastatsLine, board: str, taken_s: float, period_s: float = 0.0) -> Sample:
    """The line as a sample; `board` chooses the rails that are summed, as in `total_power_w`."""
    missing: dict[str, str] = {}
    rails_mw = tuple((rail.name, float(rail.now_mw)) for rail in line.rails)
    power_w, reason = total_power_w(board, rails_mw)
    if power_w is None:
        missing[POWER] = reason if rails_mw else "tegrastats prints no power rails here; it may for root"
    for name, degrees in line.temperatures_c.items():
        if degrees is None:
            missing[f"temperatures_c.{name}"] = "the sensor is offline"
    clocks = [core.clock_mhz for core in line.cores if core is not None]
    if not clocks:
        missing["cpu_clock_mhz"] = "the line names no core that is on"
    gpu = line.engines.get("GR3D")
    gpu_load = gpu.load if gpu is not None else None
    if gpu is None:
        missing["gpu_load"] = "tegrastats prints no GR3D_FREQ here; it may for root"
    elif gpu_load is None:
        missing["gpu_load"] = "tegrastats prints no GPU load on this board; NVML may have it"
    return Sample(
        taken_s=taken_s,
        source=SOURCE,
        rails_mw=rails_mw,
        power_w=power_w,
        covers="module",
        gpu_load=gpu_load,
        gpu_clock_mhz=_clock_mhz(line, "GR3D", "gpu_clock_mhz", missing),
        cpu_clock_mhz=float(max(clocks)) if clocks else None,
        memory_clock_mhz=_clock_mhz(line, "EMC", "memory_clock_mhz", missing),
        temperatures_c={name: degrees for name, degrees in line.temperatures_c.items() if degrees is not None},
        missing=missing,
        period_s=period_s,
    )


def _clock_mhz(line: TegrastatsLine, name: str, field: str, missing: dict[str, str]) -> float | None:
    """The fastest of a unit's parts; a clock of 0 is a unit that is switched off."""
    engine = line.engines.get(name)
    clocks = engine.clocks_mhz if engine is not None else ()
    if not clocks:
        missing[field] = f"tegrastats prints the clock of {name} to root only"
        return None
    if max(clocks) == 0:
        missing[field] = f"{name} is switched off"
        return None
    return float(max(clocks))


class TegrastatsSensor:
    """Runs `program --interval 100` until it is closed. A program that is absent or ends gives reasons."""

    def __init__(
        self,
        program: str,
        board: str = "",
        *,
        interval_ms: int = INTERVAL_MS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._board = board
        self._period_s = interval_ms / 1000
        self._clock = clock
        self._lock = threading.Lock()
        self._latest: Sample | None = None
        self._has_spoken = threading.Event()
        self._refused = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        try:
            self._process = subprocess.Popen(
                [program, "--interval", str(interval_ms)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        except OSError as problem:
            self._refused = f"{program} cannot be started: {problem.strerror or problem}"
            return
        if self._process.stdout is not None:
            self._reader = threading.Thread(
                target=self._read, args=(self._process.stdout,), name="tegrastats", daemon=True
            )
            self._reader.start()

    @property
    def pid(self) -> int | None:
        """Of the program, None when it could not be started."""
        return self._process.pid if self._process is not None else None

    def sample(self, now_s: float) -> Sample:
        """The newest line's values; only the first call waits for a line."""
        if self._process is None:
            return no_sample(now_s, SOURCE, self._refused)
        if not self._has_spoken.is_set():
            self._has_spoken.wait(FIRST_LINE_S)
            self._has_spoken.set()
        with self._lock:
            latest = self._latest
        status = self._process.poll()
        if status is not None:
            return no_sample(now_s, SOURCE, f"tegrastats ended with status {status}")
        if latest is None:
            return no_sample(now_s, SOURCE, f"tegrastats wrote no whole line in {FIRST_LINE_S:g} s")
        if now_s - latest.taken_s > STALE_INTERVALS * self._period_s:
            return no_sample(now_s, SOURCE, f"the last line of tegrastats is {now_s - latest.taken_s:.1f} s old")
        return latest

    def close(self) -> None:
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(END_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._reader is not None:
            self._reader.join(END_S)

    def _read(self, stream: IO[bytes]) -> None:
        with contextlib.closing(stream):
            within_long_line = False
            while raw := stream.readline(LONGEST_LINE_BYTES):
                is_whole = raw.endswith(b"\n")
                if is_whole and not within_long_line:
                    self._take(raw.decode("ascii", "replace"))
                within_long_line = not is_whole
        self._has_spoken.set()

    def _take(self, text: str) -> None:
        line = parse_line(text)
        if line.cores or line.rails or line.temperatures_c:
            sample = sample_of(line, self._board, self._clock(), self._period_s)
            with self._lock:
                self._latest = sample
            self._has_spoken.set()
