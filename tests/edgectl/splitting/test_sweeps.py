"""The study's runs: shared where they are the same, with the authors' settings in every sweep."""

from __future__ import annotations

from collections import Counter

import pytest

from edgectl.splitting.runs import RunSpec
from edgectl.splitting.sweeps import (
    AUTHORS_SETTINGS,
    FULL,
    QUICK,
    StudySize,
    all_runs,
    equal_evaluations,
    figure_5,
    figure_5_model,
    figure_8,
    figure_9,
    harder_world,
    setting_of,
    true_perplexity,
)


@pytest.mark.parametrize("size", [FULL, QUICK])
def test_every_figure_finds_its_runs_and_none_is_there_twice(size: StudySize) -> None:
    runs = all_runs(size)
    assert len(set(runs)) == len(runs)
    swept = (spec for specs in figure_9(size).values() for spec in specs)
    needed = {*figure_5(size), *figure_5_model(size), *figure_8(size), *swept, *harder_world(size)}
    assert needed | set(equal_evaluations(size)) == set(runs)
    assert true_perplexity(size) not in runs


def test_what_the_issue_asks_for() -> None:
    case_a = [spec for spec in figure_5(FULL) if spec.case == "A"]
    assert Counter((spec.algorithm, spec.reward, spec.tuned) for spec in case_a) == {
        ("ppo", "surrogate", False): 5,
        ("ppo", "table", False): 5,
        ("a2c", "surrogate", False): 5,
        ("dqn", "surrogate", False): 5,
        ("ppo", "surrogate", True): 5,
    }
    assert {spec.steps for spec in case_a} == {240_000}
    assert {spec.case for spec in figure_5(FULL)} == {"L", "H", "A"}
    for name, specs in figure_9(FULL).items():
        settings = Counter(setting_of(spec, name) for spec in specs)
        assert settings[AUTHORS_SETTINGS[name]] == 3
        assert len(settings) >= 4
        assert {spec.steps for spec in specs} == {60_000}
        others = set(AUTHORS_SETTINGS) - {name}
        assert all(getattr(spec, other) is None for spec in specs for other in others)
    assert {spec.actions for spec in figure_8(FULL)} == {3, 5, 9}
    assert RunSpec(steps=60_000) in figure_8(FULL)
    assert RunSpec(steps=60_000) in figure_9(FULL)["clip_range"]
    assert true_perplexity(FULL).steps == 300
    assert len(FULL.losses) * len(FULL.splits) == 72
