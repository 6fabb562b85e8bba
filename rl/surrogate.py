"""A small network in place of measured perplexities: what `train` asks thousands of times a second.

Inference is NumPy alone; `surrogate_fit` makes one. In the authors' form it gives the normalised gain itself; in the
other the logarithm of the perplexity, from which the gain is computed as from a table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import msgspec
import numpy as np

from rl.arrays import FloatArray
from rl.dense import Dense, as_lists, forward, from_lists

SCHEMA = 1
Form = Literal["gain", "log_ppl"]
MOST_CHARACTERS = 16 << 20
"""Of a file; one of 2-128-128-1 has 0.4 MB."""
FEATURES = ("loss", "split", "sigma")
"""In this order; one that never changed where it was fitted has no weight."""


class BadSurrogate(ValueError):
    """A surrogate that cannot be read or used: the field, or the other model, is named."""

    code = "bad_surrogate"


@dataclass(frozen=True, slots=True)
class Scores:
    """Predictions held against what was measured."""

    r2: float
    """1 - (squared error) / (variance); NaN where all of what was measured is equal."""
    mse: float
    mae: float
    points: int

    @classmethod
    def of(cls, predicted: FloatArray, measured: FloatArray) -> Scores:
        """Of two arrays of one shape."""
        error = predicted - measured
        spread = float(np.sum((measured - measured.mean()) ** 2))
        r2 = 1.0 - float(np.sum(error**2)) / spread if spread > 0.0 else math.nan
        return cls(r2, float(np.mean(error**2)), float(np.mean(np.abs(error))), error.size)


@dataclass(frozen=True, eq=False)
class Surrogate:
    """Satisfies `rl.quality.Gain`. Raises BadSurrogate."""

    model: str
    digest: str
    num_layers: int
    form: Form
    splits: tuple[int, ...]
    """Those that a gain is relative to the mean of, ascending."""
    centre: FloatArray
    """(3,) of loss, split, sigma: what the network sees as 0."""
    scale: FloatArray
    """(3,) what it sees as 1 more; 0: nothing of this feature."""
    target_centre: float
    target_scale: float
    layers: tuple[Dense, ...]
    notes: Mapping[str, Any] = field(default_factory=dict)
    """Where it came from and how well it did on held-out points; for people."""

    def __post_init__(self) -> None:
        if not self.splits or list(self.splits) != sorted(set(self.splits)):
            raise BadSurrogate(f"surrogate: splits {list(self.splits)} are not ascending")
        if not 1 <= self.splits[0] <= self.splits[-1] <= self.num_layers:
            raise BadSurrogate(f"surrogate: splits {list(self.splits)} leave a model of {self.num_layers} layers")
        if self.centre.shape != (3,) or self.scale.shape != (3,) or not self.layers:
            raise BadSurrogate(f"surrogate: centre, scale, layers: 3, 3 and some are expected of {', '.join(FEATURES)}")
        if self.layers[-1].bias.shape != (1,):
            raise BadSurrogate(f"surrogate: the last layer gives {len(self.layers[-1].bias)} numbers, 1 is expected")
        numbers = np.concatenate([self.centre, self.scale, [self.target_centre, self.target_scale]])
        if not np.isfinite(numbers).all():
            raise BadSurrogate("surrogate: centre, scale, target_centre, target_scale: finite numbers are expected")

    def __call__(self, loss: FloatArray, split: FloatArray, sigma: FloatArray) -> FloatArray:
        """The gain over a split drawn evenly from `splits`, at the same loss and sigma; arguments and result (n,)."""
        if self.form == "gain":
            return self._predicted(loss, split, sigma)
        own = self.ppl(loss, split, sigma)
        count = len(self.splits)
        others = self.ppl(
            np.repeat(loss, count), np.tile(np.asarray(self.splits, np.float64), len(own)), np.repeat(sigma, count)
        ).reshape(-1, count)
        result: FloatArray = 1.0 - own * np.mean(1.0 / others, axis=1)
        return result

    def ppl(self, loss: FloatArray, split: FloatArray, sigma: FloatArray) -> FloatArray:
        """Perplexity, (n,). Raises BadSurrogate of one that was fitted to gains."""
        if self.form == "gain":
            raise BadSurrogate("surrogate: fitted to gains, it knows no perplexities; fit one with the form log_ppl")
        return np.exp(self._predicted(loss, split, sigma))

    def check_model(self, model: str, digest: str, num_layers: int) -> None:
        """Raises BadSurrogate naming what differs; digests are compared where both are known."""
        if num_layers != self.num_layers:
            raise BadSurrogate(f"surrogate: fitted to {self.model} with {self.num_layers} layers, here {num_layers}")
        if digest and self.digest and digest != self.digest:
            raise BadSurrogate(f"surrogate: fitted to {self.model} {self.digest[:12]}, here {model} {digest[:12]}")

    def _predicted(self, loss: FloatArray, split: FloatArray, sigma: FloatArray) -> FloatArray:
        rows = np.stack(np.broadcast_arrays(loss, split, sigma), axis=-1).astype(np.float64)
        scaled = np.divide(rows - self.centre, self.scale, out=np.zeros_like(rows), where=self.scale != 0.0)
        result: FloatArray = forward(self.layers, scaled)[..., 0] * self.target_scale + self.target_centre
        return result


def dump_surrogate(surrogate: Surrogate) -> str:
    """JSON that parses to the same surrogate."""
    document = {
        "schema": SCHEMA,
        **{name: getattr(surrogate, name) for name in ("model", "digest", "num_layers", "form", "splits")},
        **{name: getattr(surrogate, name).tolist() for name in ("centre", "scale")},
        **{name: getattr(surrogate, name) for name in ("target_centre", "target_scale", "notes")},
        "layers": as_lists(surrogate.layers),
    }
    return msgspec.json.encode(document).decode() + "\n"


class _File(msgspec.Struct, forbid_unknown_fields=True):
    schema: int
    model: str
    digest: str
    num_layers: int
    form: Form
    splits: tuple[int, ...]
    centre: list[float]
    scale: list[float]
    target_centre: float
    target_scale: float
    layers: list[dict[str, Any]]
    notes: dict[str, Any] = {}


def parse_surrogate(text: str) -> Surrogate:
    """Raises BadSurrogate naming the field."""
    if len(text) > MOST_CHARACTERS:
        raise BadSurrogate(f"surrogate: {len(text)} characters, at most {MOST_CHARACTERS}")
    try:
        raw = msgspec.json.decode(text, type=_File)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as problem:
        raise BadSurrogate(f"surrogate: {problem}") from None
    if raw.schema != SCHEMA:
        raise BadSurrogate(f"surrogate: schema is {raw.schema}, this version reads {SCHEMA}; fit it again")
    try:
        layers = from_lists(raw.layers, len(FEATURES))
    except ValueError as problem:
        raise BadSurrogate(f"surrogate: {problem}") from None
    return Surrogate(
        model=raw.model,
        digest=raw.digest,
        num_layers=raw.num_layers,
        form=raw.form,
        splits=raw.splits,
        centre=np.asarray(raw.centre, np.float64),
        scale=np.asarray(raw.scale, np.float64),
        target_centre=raw.target_centre,
        target_scale=raw.target_scale,
        layers=layers,
        notes=raw.notes,
    )


def scores_as_dict(scores: Scores) -> dict[str, float | None]:
    """For JSON, which knows no NaN."""
    return {name: value if math.isfinite(value) else None for name, value in asdict(scores).items()}
