"""Runs are grouped by what they share, and two means differ only where their intervals are apart."""

from __future__ import annotations

import pytest

from edgectl.splitting.evidence import compared, grouped, is_above
from edgectl.splitting.references import RANDOM
from edgectl.splitting.runs import RunSpec
from rl.evaluate import Interval
from tests.fakes.canned_evidence import WORTH, canned_evidence, worth_of


def test_groups_keep_their_order() -> None:
    specs = [RunSpec(seed=seed, actions=actions) for actions in (9, 3) for seed in (0, 1)]
    groups = grouped(specs, "actions")
    assert list(groups) == [(9,), (3,)]
    assert groups[9,] == specs[:2]
    assert len(grouped(specs, "actions", "seed")) == 4


def test_means_and_references() -> None:
    found = canned_evidence()
    specs = [spec for spec in found.results if spec == RunSpec(seed=spec.seed, steps=spec.steps)]
    assert len(specs) > 1
    assert found.mean(specs).mean == pytest.approx(sum(map(worth_of, specs)) / len(specs))
    assert found.reference(specs[0], RANDOM) == WORTH[RANDOM]
    assert len(found.violin("x", specs).values) == 3 * len(specs)


@pytest.mark.parametrize(
    ("one", "other", "sign"),
    [
        (Interval(2.0, 0.4), Interval(1.0, 0.4), ">"),
        (Interval(2.0, 0.6), Interval(1.0, 0.6), "≈"),
        (Interval(1.0, 0.1), Interval(2.0, 0.1), "<"),
        (Interval(9.0, None), Interval(1.0, 0.1), "≈"),
    ],
)
def test_comparisons(one: Interval, other: Interval, sign: str) -> None:
    assert compared(one, other) == sign
    assert is_above(one, other) == (sign == ">")
