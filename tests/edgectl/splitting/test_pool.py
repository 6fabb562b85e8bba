"""Runs side by side in real processes: each once, kept at once, and what is finished outlives a failure."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgectl.output import CommandFailure
from edgectl.splitting.pool import NobodyWatches, run_all
from edgectl.splitting.runs import RunResult, RunSpec, RunStore

CHILD = [sys.executable, str(Path(__file__).parents[2] / "fakes" / "training_process.py")]
SPECS = [RunSpec(seed=seed) for seed in range(5)]


class Seen(NobodyWatches):
    def __init__(self) -> None:
        self.events: list[tuple[str, int]] = []

    def began(self, spec: RunSpec) -> None:
        self.events.append(("began", spec.seed))

    def advanced(self, spec: RunSpec, done: int, total: int) -> None:
        self.events.append(("advanced", spec.seed))

    def ended(self, spec: RunSpec, result: RunResult) -> None:
        self.events.append(("ended", spec.seed))


def test_every_run_once_and_none_a_second_time(tmp_path: Path) -> None:
    store, seen = RunStore(tmp_path, "d"), Seen()
    results = run_all([*SPECS, SPECS[0]], store, CHILD, {}, processes=2, watcher=seen)
    assert {spec.seed: result.mean for spec, result in results.items()} == {seed: 1.5 + seed for seed in range(5)}
    for what in ("began", "advanced", "ended"):
        assert sorted(seed for event, seed in seen.events if event == what) == [0, 1, 2, 3, 4]
    assert {event for event, _ in seen.events[:2]} == {"began"}  # two before the first one ends
    again = Seen()
    assert run_all(SPECS, store, ["/nonexistent"], {}, processes=2, watcher=again) == results
    assert again.events == []


@pytest.mark.parametrize(
    ("inputs", "words"),
    [({"dies_at": 3}, "ended with 3: out of paper"), ({"refuses": 3}, "failed: NaN in the rewards")],
)
def test_a_failure_keeps_what_was_finished(tmp_path: Path, inputs: dict[str, int], words: str) -> None:
    store = RunStore(tmp_path, "d")
    with pytest.raises(CommandFailure, match=words) as failed:
        run_all(SPECS, store, CHILD, inputs, processes=1, watcher=NobodyWatches())
    assert "--resume" in failed.value.hint
    assert [store.get(spec) is not None for spec in SPECS] == [True, True, True, False, False]
    seen = Seen()
    run_all(SPECS, store, CHILD, {}, processes=2, watcher=seen)
    assert sorted(seed for event, seed in seen.events if event == "began") == [3, 4]
