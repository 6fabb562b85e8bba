"""Calibrations against NumPy's covariance, and their files against everything that can be wrong with one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from agent.compute.calibration import (
    Calibration,
    Calibrations,
    Calibrator,
    calibrate,
    calibration_file,
    find_calibrations,
    write_calibrations,
)
from agent.errors import BadCheckpoint, ModelMismatch
from tests.fakes.calibrations import calibration, related_states

SIZE = 32
DIGEST = "ab" * 32


def covariance_of(one: Calibration, noise: float = 0.0) -> np.ndarray:
    spread, precision = (array.astype(np.float64) for array in one.knowledge(noise))
    return np.linalg.inv(precision / spread[:, None] / spread)


def test_a_calibration_is_mean_energy_and_covariance() -> None:
    states = related_states(20_000, SIZE)
    one = calibrate(states, 4)
    assert (one.layer, one.tokens) == (4, 20_000)
    np.testing.assert_allclose(one.mean, states.mean(0), rtol=1e-3, atol=1e-2)
    np.testing.assert_allclose(one.energy, (states**2).mean(0), rtol=1e-3)
    expected = np.cov(states.T)
    scale = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
    np.testing.assert_allclose(covariance_of(one) / scale, expected / scale, atol=0.02)
    np.testing.assert_array_equal(np.diag(one.precision), 1.0)
    assert set(one.strongest(2)) == {1, 17}
    assert one.power == pytest.approx(float((states.astype(np.float64) ** 2).mean()), rel=1e-3)


def test_windows_add_up() -> None:
    states = related_states(600, SIZE)
    calibrator = Calibrator(4, SIZE)
    for start in range(0, 600, 100):
        calibrator.add(states[None, start : start + 100])
    np.testing.assert_allclose(calibrator.result().precision, calibrate(states, 4).precision, atol=1e-6)


def test_noise_adds_to_every_variance_to_the_nearest_octave() -> None:
    one = calibration(4, SIZE)
    clean = covariance_of(one)
    for noise, octave in ((1.0, 1.0), (3.1, 4.0), (1e4, 8192.0)):
        np.testing.assert_allclose(covariance_of(one, noise), clean + octave * np.eye(SIZE), rtol=1e-3, atol=0.2)
    assert one.knowledge(3.1) is one.knowledge(3.9)
    assert np.isfinite(one.knowledge(1e300).precision).all()


def test_what_a_level_of_noise_gives_does_not_depend_on_the_last_bits_of_a_solver(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Other threads or instructions: LAPACK's results differ in their last bits."""
    solve, generator = np.linalg.solve, np.random.default_rng(4)
    plain = [calibration(4, SIZE).knowledge(2.0**octave) for octave in range(-8, 9)]

    def otherwise(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
        right = solve(a, b)
        changed: NDArray[np.float64] = right + generator.normal(size=right.shape) * 3e-12 * np.abs(right).max()
        return changed

    monkeypatch.setattr(np.linalg, "solve", otherwise)
    for octave, known in zip(range(-8, 9), plain, strict=True):
        other = calibration(4, SIZE).knowledge(2.0**octave)
        np.testing.assert_array_equal(other.precision, known.precision)
        np.testing.assert_array_equal(other.spread, known.spread)


def test_few_tokens_and_dead_elements_still_give_one() -> None:
    states = related_states(10, SIZE)
    states[:, 5] = 3.0
    one = calibrate(states, 1)
    assert np.isfinite(one.precision).all()
    assert (one.spread > 0).all()
    assert np.isfinite(calibrate(np.zeros((9, 4), np.float32), 1).precision).all()


def test_what_gives_no_calibration_says_so() -> None:
    with pytest.raises(ValueError, match="1 tokens, at least 2"):
        calibrate(np.ones((1, 8), np.float32), 3)
    with pytest.raises(ValueError, match="behind layer 3 are not all finite"):
        calibrate(np.array([[1, np.nan]], np.float32), 3)


def write(path: Path, digest: str = DIGEST) -> list[Calibration]:
    both = [calibration(16, SIZE), calibrate(related_states(50, SIZE), 4)]
    size = write_calibrations(path, both, "tiny", digest)
    assert path.stat().st_size == size
    return both


def test_a_file_gives_back_every_bit(tmp_path: Path) -> None:
    path = calibration_file(tmp_path, "tiny")
    deep, shallow = write(path)
    found = Calibrations(path, DIGEST, SIZE)
    assert found.layers == (4, 16)
    assert found.at(5) is None
    for one, expected in ((found.at(4), shallow), (found.at(16), deep)):
        assert one is not None
        assert (one.layer, one.tokens) == (expected.layer, expected.tokens)
        for name in ("mean", "energy", "spread", "precision"):
            np.testing.assert_array_equal(getattr(one, name), getattr(expected, name))
    assert found.at(4) is found.at(4)
    assert len(load_file(path)) == 8, "the format's own reader takes it"
    assert [file.name for file in tmp_path.iterdir()] == ["tiny.calibration.safetensors"]


def test_it_is_found_beside_the_model_and_then_in_the_cache(tmp_path: Path) -> None:
    models, cache = tmp_path / "models", tmp_path / "cache"
    assert find_calibrations(models, "tiny", cache, DIGEST, SIZE) is None
    write(cache / f"{DIGEST}.calibration.safetensors")
    assert find_calibrations(models, "tiny", None, DIGEST, SIZE) is None
    assert find_calibrations(models, "tiny", cache, DIGEST, SIZE) is not None
    write(calibration_file(models, "tiny"), "cd" * 32)
    with pytest.raises(ModelMismatch, match="calibration of tiny with digest cdcdcdcdcdcd, the model here has abab"):
        find_calibrations(models, "tiny", cache, DIGEST, SIZE)


def change(path: Path, what: str) -> None:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), bytearray(data[8 + length :])
    start, stop = header["precision.4"]["data_offsets"]
    match what:
        case "format":
            header["__metadata__"]["format"] = "edgectl calibration 9"
        case "missing":
            del header["energy.4"]
        case "shape":
            header["precision.4"]["shape"] = [SIZE * SIZE]
        case "number":
            body[start + 4 : start + 8] = np.float32(np.nan).tobytes()
        case "diagonal":
            body[start:stop] = bytes(stop - start)
        case "cut":
            del body[-4:]
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(body))


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("format", "format 'edgectl calibration 9'"),
        ("missing", "energy.4 is missing"),
        ("shape", r"precision.4 is missing or no F32 tensor of shape \(32, 32\)"),
        ("number", "precision.4 has elements that are no numbers"),
        ("diagonal", "ones on the diagonal"),
        ("cut", "truncated"),
    ],
)
def test_a_file_that_cannot_be_right_is_refused_by_name(tmp_path: Path, what: str, text: str) -> None:
    path = calibration_file(tmp_path, "tiny")
    write(path)
    change(path, what)
    with pytest.raises(BadCheckpoint, match=text) as problem:
        Calibrations(path, DIGEST, SIZE).at(4)
    assert "tiny.calibration.safetensors" in str(problem.value)


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = calibration_file(tmp_path, "tiny")
    write(path)
    before = path.read_bytes()

    def broken() -> object:
        yield calibration(1, SIZE)
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        write_calibrations(path, broken(), "tiny", DIGEST)  # type: ignore[arg-type]
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1
