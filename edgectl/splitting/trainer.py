"""The process that trains: reads runs as lines of JSON, trains and values each, answers with lines of JSON.

`pool` starts it, twice. torch is imported once, not once per run.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from edgectl.splitting.runs import RunResult, RunSpec, spec_from_json
from edgectl.splitting.truth import MeasuredGain
from edgectl.splitting.worlds import Inputs, true_world, world_of

if TYPE_CHECKING:
    from rl.rollout import Decide, Played, Starts
    from rl.split_world import SplitWorld
    from rl.train_settings import TrainSettings

STARTS_SEED = 20240602
"""Of the starts that every policy is valued from."""
DRAWN_RETURNS = 1000
"""Of a run, kept for violins."""
DRAWN_CHOICES = 400
"""Of a run, kept for Fig. 7."""
DIGITS = 6


def main(lines: TextIO = sys.stdin, write: Callable[[str], None] | None = None) -> None:
    """Until the input ends. A run that fails is answered with why; the next one goes on."""
    answer = _write_line if write is None else write
    loaded: dict[str, Inputs] = {}
    for line in lines:
        request = json.loads(line)
        try:
            folder = request["folder"]
            if folder not in loaded:
                loaded[folder] = Inputs.load(Path(folder), request["model"])
            spec = spec_from_json(request["spec"])
            logs = Path(request["logs"]) if request.get("logs") else None

            def progress(done: int, total: int) -> None:
                answer(json.dumps({"done": done, "total": total}))

            result = train_and_value(spec, loaded[folder], int(request["starts"][spec.world]), progress, logs)
        except (ValueError, KeyError, OSError) as problem:
            answer(json.dumps({"failed": f"{type(problem).__name__}: {problem}"}))
        else:
            answer(json.dumps({"result": asdict(result)}))


def train_and_value(
    spec: RunSpec, inputs: Inputs, starts: int, progress: Callable[[int, int], None], logs: Path | None = None
) -> RunResult:
    """One run: trained as it says, valued on the true world from common starts, before and after."""
    from rl.evaluate import by_network
    from rl.rollout import Starts
    from rl.train import train

    reset_peak_memory()
    measured = MeasuredGain.load(inputs.model, inputs.table_tokens, inputs.table) if spec.reward == "ppl" else None
    gain = inputs.gain(spec.world, spec.reward) if measured is None else measured
    trained = train(world_of(spec, gain, inputs.table), settings_of(spec), progress, logs)
    peak = peak_memory_bytes()
    true = true_world(spec, inputs)
    common = Starts.drawn(true, starts, STARTS_SEED)
    after = valued(true, by_network(trained.layers), common)
    before = valued(true, by_network(trained.untrained), common)
    return replace(
        after,
        curve=tuple((at, round(value, DIGITS)) for at, value in trained.curve),
        untrained_returns=before.returns,
        train_s=trained.train_s,
        peak_rss_bytes=peak,
        evaluations=0 if measured is None else measured.evaluations,
        evaluation_s=0.0 if measured is None else measured.seconds,
        notes=after.notes | {"untrained_mean": before.mean, "steps": float(trained.steps)},
    )


def valued(world: SplitWorld, decide: Decide, starts: Starts) -> RunResult:
    """What comes of whoever decides, from these starts."""
    from rl.rollout import play

    played = play(world, decide, starts)
    return RunResult(
        curve=(),
        returns=tuple(round(float(value), DIGITS) for value in played.returns[:DRAWN_RETURNS]),
        mean=float(played.returns.mean()),
        choices=choices_at_the_end(world, played)[:DRAWN_CHOICES],
        notes={"moves": played.moves},
    )


def settings_of(spec: RunSpec) -> TrainSettings:
    """How a run is trained: the authors' settings, or the tuned ones, but for what it says."""
    from rl.train_settings import TUNED, TrainSettings

    settings = TUNED if spec.tuned else TrainSettings()
    settings = replace(settings, algorithm=spec.algorithm, steps=spec.steps, seed=spec.seed)
    given = {
        name: value
        for name in ("learning_rate", "batch_size", "clip_range", "gae_lambda", "rollout")
        if (value := getattr(spec, name)) is not None
    }
    return replace(settings, **given)


def choices_at_the_end(world: SplitWorld, played: Played) -> tuple[tuple[float, int], ...]:
    """(loss probability, split) where each episode ended."""
    last = world.measured(played.channels[-1], played.places[-1])
    return tuple((round(each.loss or 0.0, DIGITS), each.split) for each in last)


def reset_peak_memory() -> None:
    """Begin the peak anew, where the kernel can; elsewhere it is that of the process."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def peak_memory_bytes() -> int:
    """Most resident memory since `reset_peak_memory`."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    fields: Mapping[str, str] = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return int(fields["VmHWM"].split()[0]) * 1024


def _write_line(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
