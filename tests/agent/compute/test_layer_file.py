from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from agent.compute.layer_file import ALIGNMENT_BYTES, LayerFile, LayerHeader, MappedArray, is_mapped, write_layer_file
from agent.compute.part import PartKey
from agent.errors import BadCheckpoint

KEY = PartKey("0" * 64, "int4", 32, "fp32")


def write(path: Path, arrays: dict[str, Any], part: str = "head", key: PartKey = KEY) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    size = write_layer_file(descriptor, key, part, arrays, os.write)
    os.close(descriptor)
    return size


@pytest.fixture
def arrays() -> dict[str, Any]:
    random = np.random.default_rng(1)
    return {
        "q": random.integers(0, 256, (4, 2, 16), np.uint8),
        "s": random.standard_normal((4, 2)).astype(np.float32),
        "half": random.standard_normal(5).astype(np.float16),
        "turned": random.standard_normal((3, 4)).astype(np.float32).T,
        "bf16": random.standard_normal((3, 3)).astype(ml_dtypes.bfloat16),
        "empty": np.empty((0, 4), np.float32),
    }


def test_arrays_of_every_type_come_back(tmp_path: Path, arrays: dict[str, Any]) -> None:
    path = tmp_path / "part"
    size = write(path, arrays)
    file = LayerFile(path, KEY, "head")
    file.verify()
    assert file.file_bytes == size == path.stat().st_size
    assert set(file.names) == set(arrays)
    for name, array in file.arrays().items():
        assert array.dtype == arrays[name].dtype
        np.testing.assert_array_equal(array, arrays[name])
        assert not array.flags.writeable


def test_others_can_read_it(tmp_path: Path, arrays: dict[str, Any]) -> None:
    arrays.pop("bf16")
    write(tmp_path / "part", arrays)
    for name, array in load_file(tmp_path / "part").items():
        np.testing.assert_array_equal(array, arrays[name])


def test_a_write_of_a_few_bytes_at_a_time_makes_the_same_file(tmp_path: Path, arrays: dict[str, Any]) -> None:
    write(tmp_path / "at once", arrays)
    descriptor = os.open(tmp_path / "slowly", os.O_RDWR | os.O_CREAT)
    write_layer_file(descriptor, KEY, "head", arrays, lambda target, data: os.write(target, data[:7]))
    os.close(descriptor)
    assert (tmp_path / "slowly").read_bytes() == (tmp_path / "at once").read_bytes()


def test_what_is_copied_lies_together_at_the_start_and_on_cache_lines(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {
        "a.q": np.zeros((1024, 1024), np.uint8),
        "a.s": np.zeros((1024, 512), np.float32),
        "norm": np.zeros(64, np.float32),
    }
    write(tmp_path / "part", arrays)
    file = LayerFile(tmp_path / "part", KEY, "head")
    assert [is_mapped(name, array.nbytes) for name, array in arrays.items()] == [True, False, False]
    assert file.copied_bytes == file.header.entries["a.q"].start == file.file_bytes - arrays["a.q"].nbytes
    assert all(entry.start % ALIGNMENT_BYTES == 0 for entry in file.header.entries.values())


def test_only_a_whole_tensor_knows_its_place(tmp_path: Path, arrays: dict[str, Any]) -> None:
    write(tmp_path / "part", arrays)
    array = LayerFile(tmp_path / "part", KEY, "head").array("q")
    assert array.path == tmp_path / "part"
    assert (tmp_path / "part").read_bytes()[array.start :][: array.nbytes] == array.tobytes()
    for made in (array[1:], array.copy(), array + 1, array.reshape(-1)):
        assert not isinstance(made, MappedArray) or made.path is None


def test_every_damaged_tensor_is_named(tmp_path: Path, arrays: dict[str, Any]) -> None:
    write(tmp_path / "part", arrays)
    whole = bytearray((tmp_path / "part").read_bytes())
    entries = LayerFile(tmp_path / "part", KEY, "head").header.entries
    for name in ("q", "half"):
        whole[entries[name].stop - 1] ^= 0x10
    (tmp_path / "part").write_bytes(whole)
    file = LayerFile(tmp_path / "part", KEY, "head")
    assert set(file.damaged()) == {"q", "half"}
    with pytest.raises(BadCheckpoint, match=r"(q, half|half, q) do not have"):
        file.verify()


def _set(name: str, value: str) -> Callable[[dict[str, Any]], None]:
    return lambda fields: fields["__metadata__"].__setitem__(name, value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_set("format", "edgectl part 2"), "format"),
        (_set("model", "f" * 64), "model"),
        (_set("part", "layer-000"), "part"),
        (_set("quantization", "int8"), "quantization"),
        (_set("block_size", "128"), "block_size"),
        (_set("compute", "fp16"), "compute"),
        (_set("sha256 q", ""), "q has no sha256"),
        (lambda fields: fields.pop("__metadata__"), "format"),
        (lambda fields: fields["q"].update(data_offsets=[1 << 50, (1 << 50) + 128]), "expected"),
        (lambda fields: fields["q"].update(shape=[1 << 40, 1 << 40]), "bytes for shape"),
        (lambda fields: fields.pop("half"), "begins at byte"),
    ],
)
def test_a_header_is_believed_in_nothing(
    tmp_path: Path, arrays: dict[str, Any], change: Callable[[dict[str, Any]], None], words: str
) -> None:
    write(tmp_path / "part", arrays)
    raw = LayerFile(tmp_path / "part", KEY, "head").header.raw
    assert LayerHeader.parse(raw, KEY, "head", tmp_path).raw == raw
    fields = json.loads(raw[8:])
    change(fields)
    text = json.dumps(fields).encode()
    with pytest.raises(BadCheckpoint, match=words):
        LayerHeader.parse(len(text).to_bytes(8, "little") + text, KEY, "head", tmp_path)


@pytest.mark.parametrize(
    "raw", [b"", b"\0" * 8, b"\xff" * 8, (1 << 40).to_bytes(8, "little"), b"\2" + b"\0" * 7 + b"{"]
)
def test_what_is_no_header_is_refused(tmp_path: Path, raw: bytes) -> None:
    with pytest.raises(BadCheckpoint):
        LayerHeader.parse(raw, KEY, "head", tmp_path)
