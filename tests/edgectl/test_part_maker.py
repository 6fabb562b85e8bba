"""Parts made in a child process: into the cache, into memory where the cache has no room, and what goes wrong."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TypeVar

import numpy as np
import psutil
import pytest

from agent.compute.layer_store import LayerStore
from agent.compute.model_digest import model_digest
from agent.compute.part import PartKey
from agent.compute.weights import make_part
from edgectl import part_maker
from edgectl.part_maker import MOST_IN_MEMORY, Job, PartMaker, make_parts
from tests.fakes.fake_engine import MODEL_DIR
from tests.fakes.weight_sources import CHECKPOINT, GIB, KEY

FoundT = TypeVar("FoundT")


def until(find: Callable[[], FoundT | None]) -> FoundT:
    """pytest's timeout bounds the wait."""
    while (found := find()) is None:
        time.sleep(0.01)
    return found


def test_a_part_is_made_once_and_lies_in_the_cache(tmp_path: Path) -> None:
    store = LayerStore(tmp_path, GIB)
    with closing(PartMaker(MODEL_DIR, tmp_path, GIB)) as maker:
        for _ in range(5):
            maker.make(Job(KEY, "layer-003"))
        file = until(lambda: store.find(KEY, "layer-003"))
        for name, array in make_part(CHECKPOINT, KEY, "layer-003").items():
            assert np.array_equal(file.array(name), array)
        assert maker.in_memory(Job(KEY, "layer-003")) is None
        assert maker.take_problem(Job(KEY, "layer-003")) is None


def test_without_room_parts_are_kept_in_memory_a_few_at_a_time(tmp_path: Path) -> None:
    with closing(PartMaker(MODEL_DIR, tmp_path, 0)) as maker:
        jobs = [Job(KEY, f"layer-{number:03d}") for number in range(MOST_IN_MEMORY + 1)]
        for job in jobs:
            maker.make(job)
            made = until(lambda job=job: maker.in_memory(job))  # type: ignore[misc]
            for name, array in make_part(CHECKPOINT, KEY, job.part).items():
                assert made.read(name, 0, 1 << 30)[: array.nbytes] == array.tobytes()
                assert made.read(name, 3, 5) == array.tobytes()[3:8]
        assert [maker.in_memory(job) is not None for job in jobs] == [False, *[True] * MOST_IN_MEMORY]
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_made_says_why_and_the_next_one_is_made(tmp_path: Path) -> None:
    with closing(PartMaker(MODEL_DIR, tmp_path, GIB)) as maker:
        beyond = Job(KEY, "layer-100")
        maker.make(beyond)
        assert "the model has 32 layers" in until(lambda: maker.take_problem(beyond))
        assert maker.take_problem(beyond) is None
        maker.make(Job(KEY, "head"))
        until(lambda: LayerStore(tmp_path, GIB).find(KEY, "head"))


def test_a_model_that_is_gone_is_named(tmp_path: Path) -> None:
    with closing(PartMaker(tmp_path / "gone", tmp_path / "cache", GIB)) as maker:
        maker.make(Job(KEY, "head"))
        assert "gone/config.json" in until(lambda: maker.take_problem(Job(KEY, "head")))


def test_a_child_that_is_killed_is_replaced(tmp_path: Path) -> None:
    with closing(PartMaker(MODEL_DIR, tmp_path, GIB)) as maker:
        maker.make(Job(KEY, "head"))
        until(lambda: LayerStore(tmp_path, GIB).find(KEY, "head"))
        [child] = [each for each in psutil.Process().children() if "edgectl.part_maker" in each.cmdline()]
        child.kill()
        child.wait(10)
        maker.make(Job(KEY, "embedding"))
        until(lambda: LayerStore(tmp_path, GIB).find(KEY, "embedding"))
    assert not [each for each in psutil.Process().children() if "edgectl.part_maker" in each.cmdline()]


def test_the_childs_loop_answers_every_line(tmp_path: Path) -> None:
    fp16 = PartKey(KEY.digest, "fp32", 0, "fp32")
    jobs = [Job(KEY, "head"), Job(KEY, "head"), Job(fp16, "layer-000"), Job(KEY, "layer-999")]
    lines = b"".join(job.line() for job in jobs) + b'["x", "int4", 32, "fp32", "head"]\n'
    answers = io.BytesIO()
    make_parts(MODEL_DIR, LayerStore(tmp_path, GIB), io.BytesIO(lines), answers)
    said = [json.loads(line) for line in answers.getvalue().splitlines()]
    assert [answer["bytes"] for answer in said] == [0] * 5
    assert [bool(answer["problem"]) for answer in said] == [False, False, False, True, True]
    assert LayerStore(tmp_path, GIB).find(fp16, "layer-000") is not None


def test_a_model_that_was_changed_is_not_given_out_as_what_it_was(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(MODEL_DIR, model)
    store = LayerStore(tmp_path / "layers", GIB)

    def lines() -> Iterator[bytes]:
        yield Job(KEY, "layer-000").line()
        file = next(iter(model.glob("*.safetensors")))
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
        yield Job(KEY, "layer-001").line()
        changed = PartKey(model_digest(model), KEY.quantization, KEY.block_size, KEY.compute)
        yield Job(changed, "layer-001").line()

    answers = io.BytesIO()
    make_parts(model, store, lines(), answers)  # type: ignore[arg-type]
    problems = [json.loads(line)["problem"] for line in answers.getvalue().splitlines()]
    assert [bool(problem) for problem in problems] == [False, True, False]
    assert "was changed" in problems[1]
    assert store.find(KEY, "layer-001") is None


def test_a_process_that_cannot_be_started_is_no_reason_to_give_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = subprocess.Popen
    failures = [MemoryError("fork"), BlockingIOError(11, "no more processes")]

    def scarce(*args: object, **settings: object) -> object:
        if failures:
            raise failures.pop()
        return start(*args, **settings)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "Popen", scarce)
    job = Job(KEY, "head")
    with closing(PartMaker(MODEL_DIR, tmp_path / "layers", GIB)) as maker:
        for said in ("no more processes", "fork"):
            maker.make(job)
            assert said in until(lambda: maker.take_problem(job))
        maker.make(job)
        until(lambda: LayerStore(tmp_path / "layers", GIB).find(KEY, "head"))


def test_a_child_that_hangs_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LayerStore(tmp_path / "layers", GIB)
    with closing(PartMaker(MODEL_DIR, store.root, GIB)) as maker:
        maker.make(Job(KEY, "head"))
        until(lambda: store.find(KEY, "head"))
        [child] = [each for each in psutil.Process().children() if "edgectl.part_maker" in each.cmdline()]
        child.suspend()
        monkeypatch.setattr(part_maker, "MAKE_S", 0.1)
        maker.make(Job(KEY, "embedding"))
        assert "took longer" in until(lambda: maker.take_problem(Job(KEY, "embedding")))
        monkeypatch.undo()
        maker.make(Job(KEY, "embedding"))
        until(lambda: store.find(KEY, "embedding"))


def test_the_child_ends_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    program = f"""
from pathlib import Path
from edgectl.part_maker import Job, PartMaker
from tests.fakes.weight_sources import KEY
maker = PartMaker(Path({str(MODEL_DIR)!r}), Path({str(tmp_path / "layers")!r}), 1 << 30)
maker.make(Job(KEY, "head"))
input()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, cwd=Path(__file__).parents[2]
    ) as parent:
        until(lambda: LayerStore(tmp_path / "layers", GIB).find(KEY, "head"))
        [child] = psutil.Process(parent.pid).children()
        parent.kill()
        parent.wait()
        child.wait(10)
