"""Builds csrc/ with warnings as errors and runs its C++ tests: here, under sanitizers, and for AArch64 under QEMU."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SEARCH = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
AARCH64 = [
    "-DCMAKE_SYSTEM_NAME=Linux",
    "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
    "-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++",
    "-DCMAKE_CROSSCOMPILING_EMULATOR=qemu-aarch64;-L;/usr/aarch64-linux-gnu",
]


def tool(name: str) -> str:
    """Path of a build tool, beside this interpreter or on the system; its absence skips the test by name."""
    found = shutil.which(name, path=SEARCH)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run_ctest(build: Path, *options: str) -> str:
    configure = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}", "-DEDGE_NATIVE_MODULE=OFF"]
    configure += ["-DEDGE_NATIVE_TESTS=ON", "-DEDGE_DEVELOPER=ON", *options]
    run(tool("cmake"), "-S", str(ROOT), "-B", str(build), *configure)
    run(tool("cmake"), "--build", str(build))
    return run(tool("ctest"), "--test-dir", str(build), "--verbose", "--no-tests=error")


def test_kernels_on_this_machine(tmp_path: Path) -> None:
    output = run_ctest(tmp_path)
    assert "scalar" in output
    assert "0 failures" in output


def test_kernels_under_sanitizers(tmp_path: Path) -> None:
    assert "0 failures" in run_ctest(tmp_path, "-DEDGE_SANITIZE=ON")


def test_kernels_on_aarch64(tmp_path: Path) -> None:
    tool("aarch64-linux-gnu-g++")
    tool("qemu-aarch64")
    output = run_ctest(tmp_path, *AARCH64)
    assert "neon" in output
    assert "0 failures" in output
