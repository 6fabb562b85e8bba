"""Measurements in a file: kept, resumed, torn, of something else, in use."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import ConfigError
from edgectl.quality.file import FORMAT, Measurement, QualityFile
from edgectl.quality.points import QualityPoint

SUBJECT: dict[str, object] = {"model": "m", "digest": "d", "tokens": 512, "interleaved": False}
POINTS = (QualityPoint(4, 0.1), QualityPoint(4, 0.1, 2.5, 0.75), QualityPoint(1, 0.0, 0.0, None, -3.0))
MEASURED = [Measurement(point, run, 40.0 + run / 3) for point in POINTS for run in (0, 1)]


def read(path: Path, subject: dict[str, object] | None = None) -> dict[tuple[QualityPoint, int], float]:
    with QualityFile(path, subject or SUBJECT) as file:
        return dict(file.measured)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "new" / "grid.jsonl"
    with QualityFile(path, SUBJECT) as file:
        assert file.measured == {}
        for measurement in MEASURED:
            file.add(measurement)
    return path


def test_what_is_added_is_there_again_bit_for_bit(path: Path) -> None:
    assert read(path) == {(each.point, each.run): each.perplexity for each in MEASURED}
    before = path.read_bytes()
    read(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("value", [math.nan, math.inf, 5e-324, 1.7e308])
def test_what_is_no_number_is_kept_in_honest_json(tmp_path: Path, value: float) -> None:
    path = tmp_path / "grid.jsonl"
    with QualityFile(path, SUBJECT) as file:
        file.add(Measurement(POINTS[0], 0, value))
    (found,) = read(path).values()
    assert found == value or (math.isnan(found) and math.isnan(value))

    def refuse(name: str) -> float:
        raise AssertionError(name)

    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=refuse)


def test_a_file_cut_anywhere_goes_on(path: Path, tmp_path: Path) -> None:
    """Every length it can have after an interruption: what was whole is there, and the file can be finished."""
    whole = path.read_bytes()
    for length in range(len(whole)):
        cut = tmp_path / "cut.jsonl"
        cut.write_bytes(whole[:length])
        lines = whole[:length].count(b"\n")
        with QualityFile(cut, SUBJECT) as file:
            assert len(file.measured) == max(0, lines - 1)
            for measurement in MEASURED[len(file.measured) :]:
                file.add(measurement)
        assert cut.read_bytes() == whole
        cut.unlink()


@pytest.mark.parametrize(
    ("name", "value"), [("model", "other"), ("digest", "e"), ("tokens", 513), ("interleaved", True), ("new", 1)]
)
def test_measurements_of_something_else_are_refused_by_name(path: Path, name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"made with {name} "):
        read(path, SUBJECT | {name: value})
    with pytest.raises(ConfigError, match="made with tokens 512, not None"):
        read(path, {key: value for key, value in SUBJECT.items() if key != "tokens"})


@pytest.mark.parametrize(
    "content",
    [
        b"hello\n",
        b"hello",
        b"\n",
        b"[1]\n",
        b'{"format": "other"}\n',
        b"\xff\xfe\n",
        b"[" * 100_000 + b"\n",
        b"{}\n{}\n",
    ],
)
def test_other_files_are_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "precious"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="no file of quality measurements"):
        read(path)
    assert path.read_bytes() == content


GOOD = {"split": 4, "loss": 0.1, "sigma": 0.0, "m": None, "snr_db": None, "run": 0, "ppl": 40.0}


@pytest.mark.parametrize(
    "line",
    [
        "nonsense",
        "[]",
        "3",
        json.dumps({key: value for key, value in GOOD.items() if key != "sigma"}),
        *(
            json.dumps(GOOD | change)
            for change in (
                {"split": 4.5},
                {"split": True},
                {"loss": "0.1"},
                {"loss": None},
                {"sigma": 1e999},
                {"run": -1},
                {"run": 1.5},
                {"ppl": 0},
                {"ppl": -1.0},
                {"ppl": None},
                {"ppl": "many"},
                {"ppl": []},
            )
        ),
    ],
)
def test_lines_that_are_no_measurement_are_named(path: Path, line: str) -> None:
    path.write_text(f"{path.read_text()}{line}\n")
    with pytest.raises(ConfigError, match=r"line 8 is no measurement .*remove it"):
        read(path)


@given(st.binary(max_size=60))
def test_no_bytes_crash_it(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "grid.jsonl"
    head = json.dumps({"format": FORMAT, **SUBJECT}, separators=(",", ":")).encode()
    path.write_bytes(head + b"\n" + data + b"\n")
    try:
        read(path)
    except ConfigError:
        assert path.read_bytes() == head + b"\n" + data + b"\n"


def test_what_was_added_is_out_of_this_process_at_once(path: Path) -> None:
    with QualityFile(path, SUBJECT) as file:
        before = path.read_bytes()
        file.add(Measurement(POINTS[0], 7, 40.0))
        assert len(path.read_bytes().splitlines()) == len(before.splitlines()) + 1


def test_one_process_at_a_time(path: Path) -> None:
    with QualityFile(path, SUBJECT), pytest.raises(ConfigError, match="another process is adding to it"):
        read(path)
    read(path)


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Is a directory"):
        read(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--out .*grid\.jsonl"):
        read(tmp_path / "file" / "grid.jsonl")
    for device in ("/dev/zero", "/dev/null"):
        with pytest.raises(ConfigError, match=f"{device}: no regular file"):
            read(Path(device))
