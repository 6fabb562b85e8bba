"""Builds the extension `agent.compute._native` through CMake; all metadata is in pyproject.toml.

Environment: CMAKE_ARGS is handed to CMake; EDGE_NATIVE=off leaves the extension out (the NumPy twins do its work).
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class BuildNative(build_ext):
    """Puts the module CMake builds where setuptools expects it: the wheel, or the source tree when editable."""

    def build_extension(self, ext: Extension) -> None:
        build = Path(self.build_temp).resolve() / "native"
        output = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        # cmake and ninja may be installed beside this interpreter only. They come last: pip's cmake is a Python script
        # that does not find its own module in an isolated build.
        env = {**os.environ, "PATH": os.pathsep.join([os.environ.get("PATH", ""), str(Path(sys.executable).parent)])}
        configure = ["cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release"]
        configure += [f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
        configure += [f"-DEDGE_NATIVE_OUTPUT={output}", *shlex.split(os.environ.get("CMAKE_ARGS", ""))]
        subprocess.run(configure, check=True, env=env)
        subprocess.run(["cmake", "--build", str(build), "--target", "_native"], check=True, env=env)


native = [] if os.environ.get("EDGE_NATIVE") == "off" else [Extension("agent.compute._native", sources=[])]
setup(ext_modules=native, cmdclass={"build_ext": BuildNative})
