"""A splitting study with one of everything, made of small numbers."""

from __future__ import annotations

from edgectl.splitting.results import (
    Curve,
    CurvePoint,
    Finding,
    Level,
    Panel,
    Row,
    Section,
    Study,
    Table,
    Violin,
    choices_of,
)
from rl.evaluate import Interval


def curve(name: str, count: int) -> Curve:
    return Curve(name, tuple(CurvePoint(100.0 * at, Interval(2.0 + at / 10, 0.1)) for at in range(1, count + 1)))


def canned_study(size: str = "full") -> Study:
    sections = (
        Section(
            "figure-5",
            "Fig. 5: learning",
            "Returns against steps.",
            panels=(
                Panel("case A", "steps", "return", (curve("PPO", 20), curve("A2C", 20)), (Level("optimum", 3.23),)),
                Panel("short", "steps", "return", (curve("DQN", 3),), logarithmic=("x", "y")),
            ),
        ),
        Section(
            "figure-6",
            "Fig. 6: violins",
            "Returns.",
            violins=(Violin("trained", (2.0, 3.0, 3.5) * 200), Violin("static, split 7", (2.5, 2.5))),
        ),
        Section(
            "figure-7",
            "Fig. 7: choices",
            "Splits.",
            choices=(choices_of("PPO", [(loss / 100, 1 if loss < 20 else 7) for loss in range(30)]),),
        ),
        Section(
            "table-iv",
            "Table IV: time and memory",
            "Cost.",
            tables=(Table("times", ("run", "s"), (Row("with | without", ("1.5",)),), "Note."),),
        ),
    )
    findings = (Finding("PPO beats random", "yes", "3.2 against 2.7", "reproduced"),)
    return Study(size, "edgectl reproduce splitting", "wiki-32l", "2 cores", findings, sections, (("training", 12.3),))
