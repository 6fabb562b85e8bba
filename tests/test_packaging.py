"""The wheel a stranger gets: built from the sdist, installed into a clean environment, both console scripts run.

Offline and without build isolation: the clean environment sees the packages of the running one through a .pth line,
so what is installed and tested there is the wheel alone.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import msgspec
import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = tuple(name for name in ("agent", "planner", "rl", "edgectl") if (ROOT / name / "__init__.py").exists())
SKIPPED_ON_COPY = shutil.ignore_patterns(
    ".git", ".venv", "build", "dist", "*.egg-info", "__pycache__", "*.so", ".*_cache", ".hypothesis", "benchmarks"
)

pytestmark = pytest.mark.timeout(300)


def ended(*command: str | Path, cwd: Path, **extra: str) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if key not in {"PYTHONPATH", "EDGE_NATIVE"}} | extra
    return subprocess.run(
        [str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True, check=False
    )


def run(*command: str | Path, cwd: Path, **extra: str) -> str:
    done = ended(*command, cwd=cwd, **extra)
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel made from it."""
    source = tmp_path_factory.mktemp("source") / "edgectl"
    shutil.copytree(ROOT, source, ignore=SKIPPED_ON_COPY)
    dist = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", dist, source, cwd=dist)
    return dist


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (wheel,) = built.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def clean(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with nothing but the wheel, and the packages it needs within sight."""
    home = tmp_path_factory.mktemp("clean") / "venv"
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    run(
        *(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index"),
        *("--disable-pip-version-check", wheel),
        cwd=home,
    )
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=home).strip())
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return home


def test_the_sdist_carries_what_the_extension_is_made_of(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert {"CMakeLists.txt", "setup.py", "LICENSE", "README.md", "csrc/bindings.cpp"} <= names


def test_the_wheel_holds_the_packages_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)
    modules = {str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(names)
    assert "agent/compute/_native.pyi" in names
    assert any(name.endswith("/LICENSE") for name in names)
    extensions = [name for name in names if name.endswith(".so")]
    assert len(extensions) == 1
    assert extensions[0].startswith("agent/compute/_native.")


def test_the_wheel_asks_for_nothing_heavy(wheel: Path) -> None:
    """torch and transformers only come with an extra."""
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    lines = archive.read(name).decode().splitlines()
    required = [line.split(": ")[1] for line in lines if line.startswith("Requires-Dist: ") and "extra ==" not in line]
    assert not [line for line in required if line.startswith(("torch", "transformers", "fastapi", "matplotlib"))]


def test_both_console_scripts_run(clean: Path, tmp_path: Path) -> None:
    version = msgspec.toml.decode((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert version in run(clean / "bin" / "edgectl", "--version", cwd=tmp_path)
    assert version in run(clean / "bin" / "edge-agent", "--version", cwd=tmp_path)
    assert "run" in run(clean / "bin" / "edge-agent", "--help", cwd=tmp_path)


@pytest.mark.parametrize(
    ("command", "way_out"),
    [
        (("eval", "ppl"), "lies in examples/text of a checkout only; name one with --text"),
        (("eval", "calibrate"), "lies in examples/text of a checkout only; name one with --text"),
        (("rl", "collect", "--out", "table.json"), "lies in examples/text of a checkout only; name one with --text"),
        (("reproduce", "splitting"), "lies in examples/models of a checkout only; name one with --model"),
    ],
)
def test_without_a_checkout_one_line_says_what_is_missing(
    clean: Path, tmp_path: Path, command: tuple[str, ...], way_out: str
) -> None:
    """Texts and models of examples/ are not in the wheel."""
    model = () if command[0] == "reproduce" else ("--model", ROOT / "examples" / "models" / "wiki-32l")
    done = ended(clean / "bin" / "edgectl", *command, *model, cwd=tmp_path)
    assert done.returncode != 0
    assert way_out in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error: ") == 1


def test_what_is_imported_is_the_wheel(clean: Path, tmp_path: Path) -> None:
    code = f"import json, {', '.join(PACKAGES)}; print(json.dumps([m.__file__ for m in ({', '.join(PACKAGES)},)]))"
    places = json.loads(run(clean / "bin" / "python", "-c", code, cwd=tmp_path))
    assert all(Path(place).is_relative_to(clean) for place in places)


def test_nobody_else_owns_our_package_names(clean: Path, tmp_path: Path) -> None:
    """`agent` and `planner` are common names: another distribution's would be overwritten without a word."""
    code = (
        "import json; from importlib.metadata import packages_distributions as owners;"
        f"print(json.dumps({{name: sorted(set(owners()[name])) for name in {PACKAGES!r}}}))"
    )
    owners = json.loads(run(clean / "bin" / "python", "-c", code, cwd=tmp_path))
    assert owners == {package: ["edgectl"] for package in PACKAGES}


@pytest.mark.parametrize("native", ["on", "off"])
def test_kernels_work_from_the_wheel(clean: Path, tmp_path: Path, native: str) -> None:
    code = "from agent.compute import kernels; print(kernels.crc32c(b'123456789'))"
    assert int(run(clean / "bin" / "python", "-c", code, cwd=tmp_path, EDGE_NATIVE=native)) == 0xE3069283


def test_the_lists_of_packages_agree() -> None:
    """Everything pyproject.toml asks for is pinned, once per Python version."""
    project = msgspec.toml.decode((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["cpu"], *extras["serve"], *extras["dev"], *extras["rl"]]
    wanted.remove("edgectl[rl]")  # in `dev`: our own
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = [line.split(";")[0].split("==") for line in lines if line and not line.startswith("#")]
    assert all(len(pin) == 2 and "+" not in pin[1] for pin in pinned)
    assert {normal(line) for line in wanted} <= {normal(name) for name, _ in pinned}
    assert [version for name, version in pinned if name == "torch"] == ["2.13.0"]


def normal(requirement: str) -> str:
    """Normalised name of a requirement line (PEP 503)."""
    name = requirement.split(";", maxsplit=1)[0]
    for stop in "<>=!~[ ":
        name = name.split(stop)[0]
    return name.lower().replace("_", "-").replace(".", "-")
