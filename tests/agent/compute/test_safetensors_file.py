"""Safetensors headers: files written by hand, one thing wrong at a time, and files of any bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from agent.compute.safetensors_file import MAX_HEADER_BYTES, SafetensorsFile
from agent.errors import BadCheckpoint

NAMES = {np.dtype(np.float32): "F32", np.dtype(np.float16): "F16", np.dtype(ml_dtypes.bfloat16): "BF16"}


def with_header(header: bytes, data: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def file_bytes(tensors: dict[str, NDArray[Any]], padding: int = 0) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, tensor in tensors.items():
        offsets = [len(data), len(data) + tensor.nbytes]
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
        data += tensor.tobytes()
    return with_header(json.dumps(header).encode() + b" " * padding, data)


def entry(dtype: Any = "F32", shape: Any = (2, 2), offsets: Any = (0, 16)) -> bytes:
    fields = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
    return with_header(json.dumps({"w": fields}).encode(), bytes(16))


@pytest.mark.parametrize("dtype", NAMES, ids=NAMES.get)
@pytest.mark.parametrize("padding", [0, 1, 2, 3])
def test_tensors_are_views_of_the_file_at_any_alignment(tmp_path: Path, dtype: np.dtype[Any], padding: int) -> None:
    tensor = np.arange(12).reshape(3, 4).astype(dtype)
    path = tmp_path / "a.safetensors"
    path.write_bytes(file_bytes({"w": tensor, "empty": np.zeros((0, 4), dtype)}, padding))
    view = SafetensorsFile(path).tensor("w")
    assert view.dtype == dtype
    np.testing.assert_array_equal(view.astype(np.float64), tensor.astype(np.float64))
    assert not view.flags.writeable
    assert not view.flags.owndata
    assert SafetensorsFile(path).tensor("empty").shape == (0, 4)


def test_a_view_outlives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(file_bytes({"w": np.ones(5, np.float32)}))
    view = SafetensorsFile(path).tensor("w")
    path.unlink()
    np.testing.assert_array_equal(view, 1)


def test_reads_what_the_reference_library_writes(tmp_path: Path) -> None:
    reference = pytest.importorskip("safetensors.numpy")
    tensors = {"a": np.random.default_rng(0).random((3, 5), np.float32), "b": np.ones(7, np.float16)}
    reference.save_file(tensors, tmp_path / "a.safetensors", metadata={"format": "np"})
    file = SafetensorsFile(tmp_path / "a.safetensors")
    assert set(file.entries) == {"a", "b"}
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(file.tensor(name), tensor)


def test_a_scalar_and_other_types_may_lie_beside_weights(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    header = {
        "step": {"dtype": "I64", "shape": [], "data_offsets": [0, 8]},
        "w": {"dtype": "F32", "shape": [], "data_offsets": [8, 12]},
    }
    path.write_bytes(with_header(json.dumps(header).encode(), bytes(8) + np.float32(3).tobytes()))
    file = SafetensorsFile(path)
    assert file.tensor("w") == 3
    with pytest.raises(BadCheckpoint, match=r"a\.safetensors: tensor step is I64; weights must be F32, F16, BF16"):
        file.tensor("step")


def test_the_header_is_kept_for_the_digest(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(with_header(b'{ "__metadata__": {} }'))
    assert SafetensorsFile(path).header == b'{ "__metadata__": {} }'


OVERLAP = {
    "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
    "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
}
TWICE = (
    b'{"w": {"dtype":"F32","shape":[1],"data_offsets":[0,4]}, "w": {"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
)

MALFORMED = {
    "empty": (b"", "truncated: 0 bytes"),
    "seven bytes": (bytes(7), "truncated: 7 bytes"),
    "header over the limit": ((MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b"{}", "at most 100000000"),
    "header past the end": ((100).to_bytes(8, "little") + b"{}", "truncated: header of 100 bytes in a file of 10"),
    "header a byte past the end": ((3).to_bytes(8, "little") + b"{}", "truncated: header of 3 bytes in a file of 10"),
    "no JSON": (with_header(b"{'w'}"), "no valid JSON"),
    "no UTF-8": (with_header(b'{"\xff": 1}'), "no valid JSON"),
    "deep JSON": (with_header(b"[" * 100_000), "no valid JSON"),
    "a list": (with_header(b"[]"), "no JSON object"),
    "a name twice": (with_header(TWICE, bytes(4)), "w appears twice"),
    "a field twice": (with_header(b'{"w": {"dtype":"F32","dtype":"F16"}}'), "dtype appears twice"),
    "entry no object": (with_header(b'{"w": 3}'), "tensor w: its header entry is no object"),
    "unknown dtype": (entry(dtype="F4"), "tensor w: unknown dtype 'F4'"),
    "dtype no string": (entry(dtype=["F32"]), "unknown dtype"),
    "shape missing": (entry(shape=None), "shape None"),
    "shape negative": (entry(shape=[-2, -2]), "shape"),
    "shape not whole": (entry(shape=[2.0, 2]), "shape"),
    "shape of booleans": (entry(shape=[True, 4]), "shape"),
    "shape too deep": (entry(shape=[1] * 9), "at most 8"),
    "shape enormous": (entry(shape=[1 << 62] * 8), "16 bytes for shape"),
    "three offsets": (entry(offsets=[0, 8, 16]), "data_offsets"),
    "offsets backwards": (entry(offsets=[16, 0]), "data_offsets"),
    "offset negative": (entry(offsets=[-16, 0]), "data_offsets"),
    "offsets outside the file": (entry(offsets=[4, 20]), "tensor w: ends at byte .* the file has"),
    "size unlike shape": (entry(offsets=[0, 12]), r"tensor w: 12 bytes for shape \[2, 2\] of F32, which takes 16"),
    "overlap": (with_header(json.dumps(OVERLAP).encode(), bytes(12)), "tensors a and b overlap"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_files_are_refused_with_their_name(tmp_path: Path, case: str) -> None:
    data, message = MALFORMED[case]
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(BadCheckpoint, match=message) as refused:
        SafetensorsFile(path)
    assert str(path) in str(refused.value)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match=r"nowhere.*No such file"):
        SafetensorsFile(tmp_path / "nowhere")
    with pytest.raises(BadCheckpoint, match="Is a directory"):
        SafetensorsFile(tmp_path)


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    whole = file_bytes({"a": np.ones(3, np.float32), "b": np.ones((2, 2), np.float16)})
    path = tmp_path / "a.safetensors"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(BadCheckpoint):
            SafetensorsFile(path)


WHOLE = file_bytes({"a": np.ones(3, np.float32), "b": np.ones((2, 2), np.float16)})
FLIPS = st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), max_size=4)


def flipped(flips: list[tuple[int, int]]) -> bytes:
    data = bytearray(WHOLE)
    for place, value in flips:
        data[place] = value
    return bytes(data)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200) | FLIPS.map(flipped))
def test_any_bytes_are_read_or_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)
    try:
        file = SafetensorsFile(path)
    except BadCheckpoint:
        return
    for name, place in file.entries.items():
        if place.dtype in NAMES.values():
            assert file.tensor(name).nbytes == place.stop - place.start
