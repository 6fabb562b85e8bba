"""Each figure has its curves, levels and rows; extrapolated numbers are the measured cost times the steps."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgectl.splitting.references import OPTIMUM, RANDOM
from edgectl.splitting.results import Section
from edgectl.splitting.sections import (
    action_sets_section,
    choices_section,
    learning_section,
    model_section,
    sweeps_section,
    table_iv,
    violins_section,
)
from tests.fakes.canned_evidence import WORTH, canned_evidence, result

FOUND = canned_evidence()


def cells(section: Section, name: str) -> tuple[str, ...]:
    (row,) = [row for table in section.tables for row in table.rows if row.name == name]
    return row.cells


def test_figure_5() -> None:
    section = learning_section(FOUND)
    assert [panel.title for panel in section.panels] == ["case L", "case H", "case A"]
    names = [curve.name for curve in section.panels[2].curves]
    assert names == ["PPO, surrogate", "PPO, no surrogate", "A2C, surrogate", "DQN, surrogate", "PPO tuned, surrogate"]
    assert {level.name: level.value for level in section.panels[0].levels}[OPTIMUM] == WORTH[OPTIMUM]
    # 2.9 + 0.09 of random 2.0 and best stationary 3.0.
    assert cells(section, "A: PPO, surrogate")[1] == "0.990"
    assert cells(section, f"A: {RANDOM}")[1] == "0.000"
    assert model_section(FOUND).panels[0].curves[2].name == "A2C, surrogate"


def test_table_iv_extrapolates_and_says_so() -> None:
    truth = replace(result(2.0), train_s=16.0, notes={"steps": 8.0, "moves": 0.0}, peak_rss_bytes=500 << 20)
    section = table_iv(replace(FOUND, truth=truth))
    assert cells(section, "true perplexity, per step") == ("2000 ms", "measured over 8 steps", "-")
    assert cells(section, "true perplexity, 6,000 steps") == ("3.3 h", "extrapolated", "24.0 days")
    assert cells(section, "surrogate, per step, this model")[0] == "1.000 ms"
    assert "2,000 times" in section.text
    assert cells(section, "peak memory, true perplexity")[0] == "500 MiB"


def test_figure_6_has_everybody() -> None:
    names = [violin.name for violin in violins_section(FOUND).violins]
    assert names[:4] == ["PPO, no surrogate", "PPO, surrogate", "random", "untrained PPO"]


def test_figure_7_beside_the_optimum() -> None:
    choices = choices_section(FOUND).choices
    assert [each.name.split(",")[0] for each in choices] == ["PPO", "optimum", "PPO", "optimum"]
    assert all(each.slope > 0 for each in choices)


def test_figures_8_and_9() -> None:
    assert cells(action_sets_section(FOUND), "3 actions")[1] == "0.930"
    section = sweeps_section(FOUND)
    assert [panel.title for panel in section.panels] == ["learning rate", "batch size", "clip range", "GAE lambda"]
    assert len(section.panels[0].curves) == 4
    assert cells(section, "clip range 0.2 (the authors')") == ("2.990",)
    assert pytest.approx(2.99) == section.panels[2].curves[1].points[-1].value.mean
