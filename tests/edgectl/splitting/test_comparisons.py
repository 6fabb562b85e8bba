"""Who needs how many evaluations, and whether memory earns its keep: said as the numbers have it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgectl.splitting.comparisons import equal_evaluations_section, harder_section, history_intervals
from edgectl.splitting.evidence import Evidence
from edgectl.splitting.references import AHEAD
from edgectl.splitting.sweeps import harder_world
from tests.fakes.canned_evidence import canned_evidence, result


def test_everybody_stands_at_the_evaluations_he_paid() -> None:
    (panel,) = equal_evaluations_section(canned_evidence()).panels
    at = {curve.name: [point.at for point in curve.points] for curve in panel.curves}
    assert at["table + DP"] == [6, 18, 36, 72]
    assert at["PPO on true rewards"] == [800]
    assert [at[name] for name in at if name.startswith("PPO on a surrogate")] == [[72]]


def with_history(worth: dict[int, float]) -> Evidence:
    found = canned_evidence()
    changed = {spec: result(worth[spec.history] + 0.001 * spec.seed, spec) for spec in harder_world(found.size)}
    return replace(found, results=dict(found.results) | changed)


@pytest.mark.parametrize(
    ("worth", "words"),
    [
        ({1: 2.0, 4: 2.5}, "it earns its keep"),
        ({1: 2.5, 4: 2.0}, "it does harm"),
        ({1: 2.0, 4: 2.001}, "it does not show"),
    ],
)
def test_what_memory_is_worth(worth: dict[int, float], words: str) -> None:
    found = with_history(worth)
    section = harder_section(found)
    assert words in section.text
    names = [row.name for row in section.tables[0].rows]
    assert names[-2:] == ["PPO tuned, present observation", "PPO tuned, last 4 observations"]
    assert AHEAD in names
    assert history_intervals(found)[1].mean == pytest.approx(worth[1] + 0.0005)
