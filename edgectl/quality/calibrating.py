"""Calibration of a model on this machine: what its hidden states usually are behind each layer, over a text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path

from agent.errors import ConfigError
from edgectl.quality.perplexity import MeasuredText, Subject, check_splits, find_subject, load_meter
from edgectl.quality.points import ModelKind
from edgectl.quality.text_windows import CALIBRATION_TEXT

CALIBRATION_TOKENS = 16_384
"""128 per element of a hidden state of 128. With fewer than some 10 per element the covariance says little."""
MAX_CALIBRATED_BYTES = 8 << 30
"""Sums of products, in double precision, of all layers that are calibrated at once."""

Progress = Callable[[int, int], None]
"""Called with (windows done, windows in all)."""


def calibration_subject(model: str, text: Path | None, tokens: int | None, window: int) -> Subject:
    """The model and the text it is calibrated on: by default no part of what perplexity is measured on."""
    measured = MeasuredText(path=text, tokens=tokens, window=window)
    return find_subject(model, ModelKind(boundary="fp16"), measured, CALIBRATION_TEXT)


def calibrate_model(
    subject: Subject, layers: Sequence[int] | None, out: Path | None, progress: Progress
) -> tuple[Path, int]:
    """Calibrates a model behind `layers` (None: behind all but the last) and writes the file that agents look for.

    Returns the file and its size in bytes. Raises ConfigError for layers that are none or too many for this machine and
    for a file that cannot be written, AgentError and PlannerError for the model.
    """
    from agent.compute.calibration import Calibrator, calibration_file, write_calibrations
    from planner.types import LayerRange

    size = subject.model.spec.hidden_size
    wanted = sorted(set(layers if layers is not None else range(1, subject.model.spec.num_layers)))
    check_splits(subject, wanted)
    if len(wanted) * size * size * 8 > MAX_CALIBRATED_BYTES:
        most = MAX_CALIBRATED_BYTES // (size * size * 8)
        raise ConfigError(
            f"{len(wanted)} layers of hidden size {size}, at most {most} at once; name some with --splits"
        )
    calibrators = {layer: Calibrator(layer, size) for layer in wanted}
    meter = load_meter(subject, wanted)
    with closing(meter.executor) as executor, _no_numbers(subject):
        for done, window in enumerate(meter.windows):
            hidden = executor.embed(window[None])
            for start, stop in pairwise((0, *wanted)):
                hidden = executor.forward(LayerRange(start, stop), hidden, 0, [0]).copy()
                calibrators[stop].add(hidden)
            progress(done + 1, len(meter.windows))
    path = out or calibration_file(subject.located.directory.parent, subject.located.directory.name)
    with _no_numbers(subject):
        results = [calibrator.result() for calibrator in calibrators.values()]
    try:
        return path, write_calibrations(path, results, subject.model.name, subject.model.digest)
    except OSError as problem:
        raise ConfigError(f"--out {path}: {problem.strerror}") from problem


@contextmanager
def _no_numbers(subject: Subject) -> Iterator[None]:
    """Hidden states of which nothing can be learnt are the text's or the model's fault."""
    try:
        yield
    except ValueError as problem:
        raise ConfigError(f"{subject.model.name}: {problem}") from problem
