"""A model and a text in this process, to measure perplexity: joins model, tokenizer, loader and the measurement."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from agent.errors import ConfigError
from edgectl.model_source import CACHE_DIR, LocatedModel, describe_model, locate_model
from edgectl.planning import ServedModel
from edgectl.quality.points import ModelKind
from edgectl.quality.text_windows import TEST_TEXT, WINDOW_TOKENS, TextWindows, read_text, windows_of
from planner.channel import Concealment

if TYPE_CHECKING:
    from agent.compute.calibration import Calibrations
    from agent.compute.perplexity import PerplexityMeter

DEFAULT_TOKENS = 4096
"""Sixteen windows: clean perplexity within a tenth of what the whole of the bundled text gives, in half a second."""


def _no_progress(done: int, total: int) -> None:
    """The default of `load_meter`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredText:
    """Which text perplexity is taken of, and how much of it."""

    path: Path | None = None
    """None: the slice of WikiText-2's test split in examples/text."""
    tokens: int | None = DEFAULT_TOKENS
    """None: all of it."""
    window: int = WINDOW_TOKENS


@dataclass(frozen=True, slots=True)
class Subject:
    """A model of this machine and what it is measured on, before anything is loaded."""

    located: LocatedModel
    model: ServedModel
    kind: ModelKind
    text: TextWindows = field(repr=False)

    @property
    def window(self) -> int:
        return int(self.text.windows.shape[1])

    @property
    def scored(self) -> int:
        """Tokens per run that count."""
        return self.text.tokens - len(self.text.windows)


def find_subject(model: str, kind: ModelKind, text: MeasuredText, default_text: Path = TEST_TEXT) -> Subject:
    """Reads model and text. Raises ModelNotFound, BadCheckpoint, PlannerError, and ConfigError for the text."""
    located = locate_model(model)
    written = read_text(text.path, default_text)
    described = describe_model(located)
    if text.window > described.spec.max_positions:
        raise ConfigError(f"--window {text.window}: {located.name} has {described.spec.max_positions} positions")
    windows = windows_of(written, located.directory, described.spec.vocab_size, tokens=text.tokens, window=text.window)
    return Subject(located, described, kind, windows)


def default_splits(model: str) -> tuple[int, ...]:
    """1, 2, 4, … and the last layer at which a model can be split. Raises ModelError, PlannerError."""
    from agent.compute.checkpoint import Checkpoint

    last = Checkpoint.open(locate_model(model).directory).spec.num_layers - 1
    return (*(1 << power for power in range(last.bit_length()) if 1 << power < last), last)


def check_splits(subject: Subject, splits: Sequence[int]) -> None:
    """Raises ConfigError naming a split that leaves a side without a layer."""
    layers = subject.model.spec.num_layers
    for split in splits:
        if not 1 <= split < layers:
            raise ConfigError(
                f"split {split}: {subject.model.name} has {layers} layers and so the splits 1 to {layers - 1}"
            )


def load_meter(
    subject: Subject,
    splits: Sequence[int],
    progress: Callable[[int, int], None] = _no_progress,
    calibrations: Calibrations | None = None,
) -> PerplexityMeter:
    """Loads all layers here as an agent would, cut at the splits; damage is mended with `calibrations`.

    Raises ConfigError, AgentError and PlannerError.
    """
    from agent.compute.perplexity import PerplexityMeter
    from agent.compute.provider_probe import choose_provider
    from agent.compute.receiver import Receiver
    from agent.config import AgentConfig
    from agent.device.sensors.host import has_nvidia_device
    from agent.loader import load_model
    from agent.wire.messages import Load

    check_splits(subject, splits)
    located, kind = subject.located, subject.kind
    config = AgentConfig(
        name="this-process",
        models_dir=located.directory.parent,
        cache_dir=CACHE_DIR.expanduser(),
        threads=int(os.environ.get("EDGE_AGENT__THREADS", "0")),
    )
    request = Load(
        model=located.directory.name,
        digest=subject.model.digest,
        resident=((0, subject.model.spec.num_layers),),
        quantization=kind.quantization,
        block_size=kind.block_size,
        boundary=kind.boundary,
        slots=1,
        context=subject.window,
        cuts=tuple(sorted(set(splits))),
    )
    loaded = load_model(
        request,
        config,
        choose_provider("auto") if has_nvidia_device() else "cpu",
        lambda done, total, bytes_done=0, bytes_total=0: progress(done, total),
    )
    return PerplexityMeter(loaded.executor, subject.text.windows, kind.wire, Receiver(calibrations))


def calibrations_of(subject: Subject) -> Calibrations | None:
    """The model's calibrations, where an agent would find them; None where there are none.

    Raises BadCheckpoint and ModelMismatch for a file of something else.
    """
    return _calibrations(subject.located, subject.model)


def served_concealment(model: str, splits: Collection[int]) -> Concealment:
    """What serving does by default with what is lost: lmmse where the model is calibrated behind all of these splits,
    else rescale, as devices do then.

    Raises ModelNotFound, BadCheckpoint, PlannerError, and ModelMismatch for a calibration of another model.
    """
    located = locate_model(model)
    found = _calibrations(located, describe_model(located))
    return "lmmse" if found is not None and set(splits) <= set(found.layers) else "rescale"


def _calibrations(located: LocatedModel, model: ServedModel) -> Calibrations | None:
    from agent.compute.calibration import find_calibrations

    directory = located.directory
    return find_calibrations(
        directory.parent, directory.name, CACHE_DIR.expanduser(), model.digest, model.spec.hidden_size
    )


def check_calibrated(subject: Subject, calibrations: Calibrations | None, splits: Sequence[int]) -> None:
    """Raises ConfigError naming a split behind which the model is not calibrated."""
    known = () if calibrations is None else calibrations.layers
    for split in splits:
        if split not in known:
            raise ConfigError(
                f"{subject.model.name} is not calibrated behind layer {split}, which this mitigation takes; "
                f"`edgectl eval calibrate --model {subject.located.directory}` does it"
            )
