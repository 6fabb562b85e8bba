"""A stand-in for NVIDIA's tegrastats: `tegrastats [--interval MS] [--logfile FILE]` replays recorded lines forever.

`install` puts it into a folder as an executable program; a test puts that folder on PATH or names the program. It
needs nothing but the standard library, since it runs as a process of its own.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

SAMPLES = Path(__file__).parents[1] / "data" / "tegrastats_samples.txt"


def recorded_lines(path: Path = SAMPLES) -> list[str]:
    """The recorded lines, S01 first, without their comments."""
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]


def install(folder: Path, lines: Sequence[str], *, repeat: bool = True, status: int = 0) -> Path:
    """The program `folder/tegrastats` that replays these lines; without `repeat` it then ends with `status`."""
    folder.mkdir(parents=True, exist_ok=True)
    text = folder / "lines.txt"
    text.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    program = folder / "tegrastats"
    arguments = ["--lines", str(text)] if repeat else ["--lines", str(text), "--once", "--status", str(status)]
    program.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        f"from tegrastats import main\nmain({arguments!r} + sys.argv[1:])\n",
        encoding="utf-8",
    )
    program.chmod(0o755)
    return program


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="tegrastats", description=__doc__)
    parser.add_argument("--interval", type=int, default=1000, metavar="MS")
    parser.add_argument("--logfile", type=Path)
    parser.add_argument("--lines", type=Path, default=SAMPLES)
    parser.add_argument("--once", action="store_true")
    parser.add_argument("--status", type=int, default=0)
    options = parser.parse_args(arguments)
    lines = recorded_lines(options.lines)
    output = options.logfile.open("a", encoding="utf-8") if options.logfile else sys.stdout
    try:
        for line in lines if options.once else itertools.cycle(lines):
            output.write(line + "\n")
            output.flush()
            time.sleep(options.interval / 1000)
    except (BrokenPipeError, KeyboardInterrupt):
        os._exit(0)  # the reader is gone: end without a word, as the real one does
    sys.exit(options.status)


if __name__ == "__main__":
    main()
