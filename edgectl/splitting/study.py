"""The splitting study from beginning to end: measures, fits, trains, values, and joins it all to a report.

Everything that takes time is kept in a folder as soon as it is known; a study that was interrupted goes on from there.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from agent.device.sensors.host import physical_cores
from agent.errors import ConfigError
from agent.worker_channel import module_command
from edgectl.failures import ExitCode
from edgectl.output import CommandFailure
from edgectl.splitting.comparisons import equal_evaluations_section, harder_section
from edgectl.splitting.evidence import Evidence, References
from edgectl.splitting.findings import findings
from edgectl.splitting.pool import run_all
from edgectl.splitting.progress import PartClock, watching
from edgectl.splitting.quality import GRIDS, Measured, figure_3, measure
from edgectl.splitting.references import by_coarse_tables, references
from edgectl.splitting.results import Section, Study
from edgectl.splitting.runs import Case, RunResult, RunSpec, RunStore, World, write_whole
from edgectl.splitting.sections import (
    action_sets_section,
    choices_section,
    learning_section,
    model_section,
    sweeps_section,
    table_iv,
    violins_section,
)
from edgectl.splitting.surrogates import fit_surrogates, surrogate_table
from edgectl.splitting.sweeps import FULL, QUICK, StudySize, all_runs, true_perplexity
from edgectl.splitting.worlds import SURROGATE_FILES, TABLE_FILE, Inputs
from rl.quality import QualityTable

Bar = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]
"""`output.progress_bar`."""
MOST_PROCESSES = 8
LEARNERS_NEED = ("torch", "gymnasium", "stable_baselines3", "tensorboard", "statsmodels")
CACHE = "cache"
FIGURE_3_TEXT = (
    "Perplexity of the bundled text, mean and 95 % interval over seeded runs, nothing done about what is lost. The "
    "residual stream grows with depth, so noise of one sigma is a lower signal-to-noise ratio the earlier it comes, "
    "and is expected to hurt more there. Erasure takes in proportion to the stream: no such order is expected of it. "
    "That is why the study's channel is equation 3 whole (fading, noise and erasure). Which orders were found is among "
    "the findings above. The paper's own models are of 1 to 13 billion parameters; its claim is held against ours "
    "by order, not by value."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StudySettings:
    """What is to be studied, and where it is kept. Raises ConfigError."""

    model: str
    out: Path
    quick: bool = False
    seeds: int | None = None
    """Of every comparison; None: as the size has it."""
    resume: bool = False
    processes: int | None = None
    """That train side by side; None: one per processor."""

    def __post_init__(self) -> None:
        if self.seeds is not None and not 1 <= self.seeds <= 100:
            raise ConfigError(f"--seeds {self.seeds}: 1 to 100 are possible")

    @property
    def size(self) -> StudySize:
        size = QUICK if self.quick else FULL
        if self.seeds is None:
            return size
        return replace(size, seeds=self.seeds, sweep_seeds=min(self.seeds, size.sweep_seeds))

    @property
    def folder(self) -> Path:
        """Of what is kept. The two sizes keep theirs apart."""
        return self.out / CACHE / self.size.name

    @property
    def command(self) -> str:
        """That makes this study again."""
        quick = " --quick" if self.quick else ""
        seeds = "" if self.seeds is None else f" --seeds {self.seeds}"
        return f"edgectl reproduce splitting{quick}{seeds}"


def require_learners() -> None:
    """Raises CommandFailure where training's libraries are missing: before an hour of measuring, not after it."""
    missing = [name for name in LEARNERS_NEED if find_spec(name) is None]
    if missing:
        raise CommandFailure(
            ExitCode.UNAVAILABLE, f"the study needs {', '.join(missing)} to train", "pip install 'edgectl[rl]'"
        )


def run_study(settings: StudySettings, bar: Bar) -> Study:
    """All of it. Raises ConfigError for folder, model or text, AgentError and PlannerError for the model, and
    CommandFailure where a run fails or a library is missing."""
    require_learners()
    _open_folder(settings)
    size, folder = settings.size, settings.folder
    clock = PartClock(folder / "seconds.json")
    tables: dict[str, QualityTable] = {}
    for name in GRIDS:
        with clock.part(f"grid: {name}"), bar(f"perplexities: {name}") as progress:
            tables[name] = measure(name, settings.model, size, folder, progress)
    measured = Measured(tables["erasure"], tables["noise"], tables["whole"])
    write_whole(folder / TABLE_FILE, measured.whole.to_json())
    with clock.part("surrogates"):
        validations = fit_surrogates(measured.whole, folder, size.folds)
    inputs = Inputs.load(folder, settings.model)
    digest = _digest(folder)
    processes = settings.processes or min(physical_cores(), MOST_PROCESSES)
    with clock.part("training"):
        results = _train(settings, digest, all_runs(size), processes)
    with clock.part("training on measured perplexities"):
        # Alone, for its times count: the model takes every processor.
        truth = _train(settings, digest, (true_perplexity(size),), 1)[true_perplexity(size)]
    with clock.part("controllers and dynamic programming"), bar("controllers") as progress:
        held_against = _references(settings, inputs, digest, progress)
        coarse = by_coarse_tables(inputs, size.starts, folder, digest)
    found = Evidence(size, measured, validations, results, truth, held_against, coarse, clock.seconds, processes)
    return Study(
        size.name,
        settings.command,
        measured.whole.model,
        f"{physical_cores()} cores ({platform.machine()}), {processes} training processes",
        findings(found),
        sections(found),
        tuple(clock.seconds.items()),
    )


def sections(found: Evidence) -> tuple[Section, ...]:
    """The report, in its order."""
    return (
        Section("figure-3", "Fig. 3: perplexity under loss and noise", FIGURE_3_TEXT, panels=figure_3(found.measured)),
        learning_section(found),
        model_section(found),
        table_iv(found),
        violins_section(found),
        choices_section(found),
        action_sets_section(found),
        sweeps_section(found),
        equal_evaluations_section(found),
        harder_section(found),
        Section(
            "surrogates",
            "The reward surrogates on points held out",
            "What training is rewarded by: on the authors' surface `smooth-gain`, on the model's table `smooth-ppl`.",
            tables=(surrogate_table(found.validations, found.size.folds),),
        ),
    )


def _open_folder(settings: StudySettings) -> None:
    """Raises ConfigError for a folder that cannot be written, and for one with an earlier study in it."""
    folder = settings.folder
    if folder.exists() and any(folder.iterdir()) and not settings.resume:
        raise ConfigError(
            f"--out {settings.out}: an earlier study is in {folder}; --resume goes on with it, or name another folder"
        )
    # As other caches do: what is kept is never committed by accident.
    write_whole(settings.out / CACHE / ".gitignore", "*\n")


def _train(
    settings: StudySettings, digest: str, specs: tuple[RunSpec, ...], processes: int
) -> dict[RunSpec, RunResult]:
    size, folder = settings.size, settings.folder
    store = RunStore(folder / "runs", digest)
    inputs = {
        "folder": str(folder),
        "model": settings.model,
        "logs": str(folder / "tensorboard"),
        "starts": {world: size.starts_of(world) for world in ("authors", "model", "harder")},
    }
    done = sum(store.get(spec) is not None for spec in specs)
    command = module_command("edgectl.splitting.trainer")
    with watching(len(specs), done) as watcher:
        return run_all(specs, store, command, inputs, processes=processes, watcher=watcher)


def _references(
    settings: StudySettings, inputs: Inputs, digest: str, progress: Callable[[int, int], None]
) -> Mapping[tuple[World, Case, int], References]:
    size = settings.size
    plain = {(spec.world, spec.case, spec.actions): spec for spec in all_runs(size)}
    found = {}
    for count, (key, spec) in enumerate(plain.items()):
        progress(count, len(plain))
        world_spec = RunSpec(world=spec.world, case=spec.case, actions=spec.actions)
        found[key] = references(world_spec, inputs, size.starts_of(spec.world), settings.folder, digest)
    return found


def _digest(folder: Path) -> str:
    """Of everything that training reads."""
    text = b"".join((folder / name).read_bytes() for name in (TABLE_FILE, *SURROGATE_FILES.values()))
    return hashlib.sha256(text).hexdigest()
