"""What hidden states of a model usually are between two layers: mean, energy, and how elements hang together.

Measured once per model and boundary on any text (`Calibrator`), kept in one safetensors file per model that carries the
model's digest, and used by whoever receives over a lossy link: to conceal what was lost, and to know which few elements
are worth sending twice. The file holds the matrix that concealment computes with as it is used, so that it is the same
to the last bit on every device.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from agent.compute.safetensors_file import SafetensorsFile
from agent.errors import BadCheckpoint, ModelMismatch

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

SUFFIX = ".calibration.safetensors"
"""Beside the model's directory, never in it: every safetensors file in there counts for the model's digest."""
RIDGE = 0.2
"""Times hidden size per token of calibration, times the median variance: what is added to every variance. With few
tokens the covariance has directions without any, whose inverse would be believed too much; measured on hidden states
of the bundled model for 2 to 256 tokens per element."""
MAX_NOISE_BYTES = 256 << 20
"""Matrices kept for levels of noise: 16 of them at a hidden size of 2048."""
GRID = 2.0**-18
"""Of what depends on a level of noise: four parts in a million, where concealment is exact to one in a thousand."""
LOWEST_OCTAVE, HIGHEST_OCTAVE = -30, 60

_FORMAT = "edgectl calibration 1"
_LENGTH_BYTES = 8
_NAMES = ("mean", "energy", "spread", "precision")


class Knowledge(NamedTuple):
    """What `kernels.conceal` takes beside the mean; shapes [H] and [H, H]."""

    spread: Float32
    precision: Float32


@dataclass(frozen=True, slots=True)
class Calibration:
    """Hidden states behind the first `layer` layers, over `tokens` tokens of some text."""

    layer: int
    tokens: int
    mean: Float32
    energy: Float32
    """Mean square of each element."""
    spread: Float32
    """Standard deviation of each element given all others: 1/sqrt(P_ii), P the inverse covariance."""
    precision: Float32
    """P_ij spread_i spread_j [H, H]."""
    _noisy: dict[int, Knowledge] = field(default_factory=dict, repr=False, compare=False)

    @property
    def power(self) -> float:
        """Mean square of an element over all of them."""
        return float(self.energy.mean(dtype=np.float64))

    def strongest(self, count: int) -> NDArray[np.int64]:
        """The `count` elements with the most energy, the strongest first."""
        return np.argsort(-self.energy, kind="stable")[:count].astype(np.int64)

    def knowledge(self, noise: float = 0.0) -> Knowledge:
        """For elements that came with noise of this variance, to the nearest octave: another inverse of the covariance,
        made at its first use (a tenth of a second at a hidden size of 1024, times eight with each doubling)."""
        if noise <= 0.0:
            return Knowledge(self.spread, self.precision)
        octave = int(np.clip(np.rint(np.log2(noise)), LOWEST_OCTAVE, HIGHEST_OCTAVE))
        if octave not in self._noisy:
            while len(self._noisy) >= max(1, MAX_NOISE_BYTES // self.precision.nbytes):
                del self._noisy[next(iter(self._noisy))]
            self._noisy[octave] = self._with_noise(2.0**octave)
        return self._noisy[octave]

    def _with_noise(self, variance: float) -> Knowledge:
        """(C + v I)^-1 = P (I + v P)^-1, which never needs C.

        How many threads and which instructions solve it shows in the last of 53 bits. What comes out is rounded to a
        grid so much coarser that devices hardly ever differ.
        """
        spread = self.spread.astype(np.float64)
        inverse = self.precision / spread[:, None] / spread
        known = _scaled(np.linalg.solve(np.eye(len(spread)) + variance * inverse, inverse).astype(np.float64))
        mantissa, exponent = np.frexp(known.spread)
        return Knowledge(np.ldexp(_to_grid(mantissa), exponent), _to_grid(known.precision))


class Calibrator:
    """Adds up hidden states at one boundary."""

    def __init__(self, layer: int, hidden_size: int) -> None:
        self._layer = layer
        self._tokens = 0
        self._sum = np.zeros(hidden_size)
        self._products = np.zeros((hidden_size, hidden_size))

    def add(self, hidden: Float32) -> None:
        """Hidden states [..., H]. Raises ValueError when one of them is no finite number."""
        values = hidden.reshape(-1, len(self._sum)).astype(np.float64)
        if not np.isfinite(values).all():
            raise ValueError(f"hidden states behind layer {self._layer} are not all finite: no calibration from these")
        self._tokens += len(values)
        self._sum += values.sum(axis=0)
        self._products += values.T @ values

    def result(self) -> Calibration:
        """Raises ValueError when there were fewer than two tokens."""
        if self._tokens < 2:
            raise ValueError(f"calibration behind layer {self._layer}: {self._tokens} tokens, at least 2 are needed")
        mean = self._sum / self._tokens
        products = self._products / self._tokens
        covariance = products - np.outer(mean, mean)
        variances = np.diag(covariance)
        ridge = RIDGE * len(mean) / self._tokens * float(np.median(variances))
        # Elements that never change, as in a model that was never trained, must not make the matrix singular.
        ridge = max(ridge, 1e-6 * float(variances.mean()), 1e-12)
        known = _scaled(np.linalg.inv(covariance + ridge * np.eye(len(mean))).astype(np.float64))
        energy = np.diag(products).astype(np.float32)
        return Calibration(self._layer, self._tokens, mean.astype(np.float32), energy, *known)


def calibrate(hidden: Float32, layer: int) -> Calibration:
    """Calibration from hidden states [..., H] behind the first `layer` layers."""
    calibrator = Calibrator(layer, hidden.shape[-1])
    calibrator.add(hidden)
    return calibrator.result()


class Calibrations:
    """A model's file of them, each read when it is first asked for."""

    def __init__(self, path: Path, digest: str, hidden_size: int) -> None:
        """Raises BadCheckpoint for a file that is no calibration, ModelMismatch naming the model it is of when its
        digest is not `digest`."""
        self._file = SafetensorsFile(path)
        self._hidden_size = hidden_size
        self._read: dict[int, Calibration] = {}
        noted = self._file.metadata
        if noted.get("format") != _FORMAT:
            raise BadCheckpoint(f"{path}: format {noted.get('format')!r}, expected {_FORMAT!r}")
        if noted.get("digest") != digest:
            raise ModelMismatch(
                f"{path} is the calibration of {noted.get('model', '?')} with digest {noted.get('digest', '')[:12]}, "
                f"the model here has {digest[:12]}; calibrate it with `edgectl eval calibrate`"
            )

    @property
    def layers(self) -> tuple[int, ...]:
        """Boundaries that it has, by the number of layers passed."""
        named = (name.partition(".") for name in self._file.entries)
        return tuple(sorted(int(layer) for what, _, layer in named if what == "mean" and layer.isdecimal()))

    def at(self, layer: int) -> Calibration | None:
        """None where nothing was measured. Raises BadCheckpoint for tensors that cannot be right."""
        if layer not in self._read:
            if f"mean.{layer}" not in self._file.entries:
                return None
            self._read[layer] = self._checked(layer)
        return self._read[layer]

    def _checked(self, layer: int) -> Calibration:
        size, path = self._hidden_size, self._file.path
        shapes = {name: (size, size) if name == "precision" else (size,) for name in _NAMES}
        arrays: dict[str, Float32] = {}
        for name, shape in shapes.items():
            entry = self._file.entries.get(f"{name}.{layer}")
            if entry is None or entry.shape != shape or entry.dtype != "F32":
                raise BadCheckpoint(f"{path}: {name}.{layer} is missing or no F32 tensor of shape {shape}")
            arrays[name] = np.array(self._file.tensor(f"{name}.{layer}"))
            if not np.isfinite(arrays[name]).all():
                raise BadCheckpoint(f"{path}: {name}.{layer} has elements that are no numbers")
        if not (arrays["spread"] > 0).all() or not np.allclose(np.diag(arrays["precision"]), 1.0, atol=1e-3):
            raise BadCheckpoint(f"{path}: spread.{layer} or precision.{layer} is none: ones on the diagonal expected")
        tokens = self._file.metadata.get(f"tokens.{layer}", "")
        mean, energy, spread, precision = (arrays[name] for name in _NAMES)
        return Calibration(layer, int(tokens) if tokens.isdecimal() else 0, mean, energy, spread, precision)


def calibration_file(models_dir: Path, model: str) -> Path:
    """Where the calibration of a model in `models_dir` lies."""
    return models_dir / f"{model}{SUFFIX}"


def find_calibrations(
    models_dir: Path, model: str, cache_dir: Path | None, digest: str, hidden_size: int
) -> Calibrations | None:
    """That of the model: beside its directory, else in the cache under its digest; None where there is neither.

    Raises BadCheckpoint and ModelMismatch as `Calibrations` does.
    """
    places = [calibration_file(models_dir, model)]
    if cache_dir is not None:
        places.append(cache_dir / f"{digest}{SUFFIX}")
    for path in places:
        if path.is_file():
            return Calibrations(path, digest, hidden_size)
    return None


def write_calibrations(path: Path, calibrations: Iterable[Calibration], model: str, digest: str) -> int:
    """Write a model's calibrations, whole or not at all; returns the file's size in bytes. Raises OSError."""
    metadata = {"format": _FORMAT, "model": model, "digest": digest}
    arrays: dict[str, Float32] = {}
    for one in sorted(calibrations, key=lambda calibration: calibration.layer):
        metadata[f"tokens.{one.layer}"] = str(one.tokens)
        for name in _NAMES:
            arrays[f"{name}.{one.layer}"] = np.ascontiguousarray(getattr(one, name), np.float32)
    header: dict[str, object] = {"__metadata__": metadata}
    offset = 0
    for name, array in arrays.items():
        header[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # The format wants the data aligned.
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(len(text).to_bytes(_LENGTH_BYTES, "little") + text)
            for array in arrays.values():
                file.write(array.data)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
    return _LENGTH_BYTES + len(text) + offset


def _to_grid(values: Float32) -> Float32:
    """Of magnitude 1 at most, to the nearest multiple of `GRID`."""
    rounded: Float32 = np.rint(values / np.float32(GRID)) * np.float32(GRID)
    return rounded


def _scaled(inverse: Float64) -> Knowledge:
    """An inverse covariance as `Knowledge`."""
    spread = 1.0 / np.sqrt(np.diag(inverse))
    scaled = inverse * spread[:, None] * spread
    # Symmetric and with exact ones, whatever rounding the inversion left.
    scaled = (scaled + scaled.T) / 2.0
    np.fill_diagonal(scaled, 1.0)
    return Knowledge(spread.astype(np.float32), np.ascontiguousarray(scaled, np.float32))
