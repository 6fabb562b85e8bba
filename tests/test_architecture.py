"""What the tree promises: tests mirror it, files stay short, and nobody imports what he must not.

Layers between packages are import-linter's (pyproject.toml, `make arch`); here is what it cannot say.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("agent", "planner", "rl", "edgectl")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MODULES = [path for path in SOURCES if path.name != "__init__.py"]
TESTS = sorted((ROOT / "tests").rglob("*.py"))

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 70
BANNED_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "base", "manager"}

ALLOWED_IMPORTERS = {
    "zmq": {"agent/wire/transport.py", "agent/wire/security.py"},
    "onnxruntime": {
        "agent/compute/onnx_session.py",
        "agent/compute/onnx_block.py",
        "agent/compute/onnx_executor.py",
        "agent/compute/quantize.py",
        "rl/policy.py",
    },
    "_native": {"agent/compute/kernels.py"},
    "transformers": {"edgectl/"},
    "tokenizers": {"edgectl/"},
    "fastapi": {"edgectl/"},
    "uvicorn": {"edgectl/"},
    "torch": {"rl/split_env.py", "rl/train.py", "rl/export.py"},
    "gymnasium": {"rl/split_env.py", "rl/train.py", "rl/export.py"},
    "stable_baselines3": {"rl/split_env.py", "rl/train.py", "rl/export.py"},
    "pickle": set(),
    "marshal": set(),
    "shelve": set(),
    "dill": set(),
}
"""Third-party or dangerous module → where it may be imported (a folder ends in a slash)."""

NOT_IN_THE_AGENT = ("torch", "transformers", "fastapi", "uvicorn", "starlette", "typer", "rich", "prometheus_client")

HAS_NO_TEST_OF_ITS_OWN: dict[str, str] = {
    "agent/errors.py": "a tree of classes without behaviour; edgectl/test_failures.py holds the codes complete",
    "agent/compute/executor.py": "a Protocol; every executor's test is its test",
    "agent/effects.py": "frozen data; agent/test_stage.py asserts on it",
    "edgectl/effects.py": "frozen data; edgectl/test_cluster.py asserts on it",
    "rl/controller.py": "frozen data and a Protocol; every controller's test is its test",
    "agent/wire/message.py": "one tag; agent/wire/test_messages.py sends every message that has it",
    "agent/wire/measure_messages.py": "frozen data; agent/wire/test_messages.py sends it",
    "agent/wire/addresses.py": "frozen data; agent/wire/test_messages.py sends it through a message",
    "edgectl/local_cluster.py": "starts processes; tests/cluster and tests/test_demo.py are made of it",
    "edgectl/local_processes.py": "starts processes; tests/cluster and tests/test_demo.py are made of it",
    "agent/wire/events.py": "frozen data; agent/wire/test_data_plane.py asserts on it",
}
"""Module → why no file mirrors it. Anything else without a test file fails."""


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imported(tree: ast.Module) -> Iterator[str]:
    """Every dotted name an import statement brings in, wherever it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module or ''}.{alias.name}" for alias in node.names)


def mirror_of(module: Path) -> Path:
    relative = module.relative_to(ROOT)
    return ROOT / "tests" / relative.parent / f"test_{relative.name}"


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_every_module_has_its_test_file(module: Path) -> None:
    reason = HAS_NO_TEST_OF_ITS_OWN.get(name_of(module))
    mirror = mirror_of(module)
    if reason is None:
        assert mirror.is_file(), f"{name_of(module)} has no {name_of(mirror)}"
        functions = [node.name for node in ast.walk(tree_of(mirror)) if isinstance(node, ast.FunctionDef)]
        assert any(name.startswith("test_") for name in functions) or "TestCase" in mirror.read_text(encoding="utf-8")
    else:
        assert not mirror.exists(), f"{name_of(mirror)} exists: drop {name_of(module)} from the exceptions"


def test_exceptions_name_modules_that_exist() -> None:
    assert set(HAS_NO_TEST_OF_ITS_OWN) <= {name_of(module) for module in MODULES}


@pytest.mark.parametrize("test", [path for path in TESTS if path.name.startswith("test_")], ids=name_of)
def test_every_test_file_in_a_package_folder_mirrors_a_module(test: Path) -> None:
    relative = test.relative_to(ROOT / "tests")
    if relative.parts[0] in PACKAGES:
        assert (ROOT / relative.parent / relative.name.removeprefix("test_")).is_file()


@pytest.mark.parametrize("path", [*SOURCES, *TESTS], ids=name_of)
def test_files_and_functions_stay_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_FILE_LINES
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    long = {
        node.name: node.end_lineno - node.lineno + 1
        for node in ast.walk(tree_of(path))
        if isinstance(node, functions) and node.end_lineno and node.end_lineno - node.lineno >= MAX_FUNCTION_LINES
    }
    assert long == {}


@pytest.mark.parametrize("path", [path for path in SOURCES if path.name == "__init__.py"], ids=name_of)
def test_init_files_are_empty(path: Path) -> None:
    assert path.read_bytes() == b""


def test_tests_are_no_packages() -> None:
    assert [name_of(path) for path in TESTS if path.name == "__init__.py"] == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_modules_are_named_after_what_they_own(path: Path) -> None:
    assert path.stem not in BANNED_NAMES


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_named_places_import_these(path: Path) -> None:
    wrong = []
    for name in imported(tree_of(path)):
        for library, places in ALLOWED_IMPORTERS.items():
            here = name_of(path)
            allowed = any(here == place or (place.endswith("/") and here.startswith(place)) for place in places)
            if library in name.split(".") and not allowed:
                wrong.append(name)
    assert wrong == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_module_says_what_it_owns(path: Path) -> None:
    assert ast.get_docstring(tree_of(path))


def calls(tree: ast.Module) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_wall_clock_in_logic_and_no_shell(path: Path) -> None:
    """time.time() steps with NTP and evicts every device at once; a shell turns names into commands."""
    tree = tree_of(path)
    assert [ast.unparse(call) for call in calls(tree) if ast.unparse(call.func) in {"time.time", "os.system"}] == []
    assert [name for name in imported(tree) if name in {"time.time", "os.system"}] == []
    keywords = [keyword for call in calls(tree) for keyword in call.keywords if keyword.arg == "shell"]
    assert keywords == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_error_is_swallowed(path: Path) -> None:
    """An `except Exception` or bare except that does nothing hides the next bug."""
    silent = [
        node.lineno
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or ast.unparse(node.type) in {"Exception", "BaseException"})
        and all(isinstance(statement, (ast.Pass, ast.Continue)) for statement in node.body)
    ]
    assert silent == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_modules_hold_no_mutable_state(path: Path) -> None:
    """A `global` statement is the sign of it; tables at module level are constants."""
    assert [node.lineno for node in ast.walk(tree_of(path)) if isinstance(node, ast.Global)] == []


@pytest.mark.parametrize("module", ["agent.main", "agent.supervisor", "agent.worker"])
def test_the_daemon_loads_nothing_heavy(module: str) -> None:
    """torch costs 200 MB and seconds; without a model not even ONNX Runtime is needed."""
    code = f"import sys, {module}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert set(NOT_IN_THE_AGENT) & set(done.stdout.split()) == set()
    if module != "agent.worker":
        assert "onnxruntime" not in done.stdout.split()


def test_only_bindings_include_pybind11() -> None:
    kernels = [path for path in (ROOT / "csrc").rglob("*.[ch]pp") if path.name != "bindings.cpp"]
    assert kernels
    assert [path.name for path in kernels if "pybind11" in path.read_text(encoding="utf-8")] == []


def test_native_sources_stay_short() -> None:
    lengths = {name_of(p): len(p.read_text(encoding="utf-8").splitlines()) for p in (ROOT / "csrc").rglob("*.[ch]pp")}
    assert {name: count for name, count in lengths.items() if count > MAX_FILE_LINES} == {}


def test_no_marker_of_unfinished_work() -> None:
    marker = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
    files = [*SOURCES, *(ROOT / "csrc").rglob("*.[ch]pp"), *(ROOT / "docs").rglob("*.md")]
    assert [name_of(path) for path in files if marker.search(path.read_text(encoding="utf-8"))] == []


def test_architecture_stays_readable_in_one_sitting() -> None:
    assert len((ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").splitlines()) < 150
