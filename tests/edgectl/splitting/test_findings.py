"""Verdicts follow the numbers, whichever way they point."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from edgectl.splitting.evidence import Evidence
from edgectl.splitting.findings import findings
from edgectl.splitting.references import OPTIMUM, TABLE
from edgectl.splitting.runs import RunSpec
from edgectl.splitting.sweeps import QUICK
from tests.fakes.canned_evidence import canned_evidence, result, worth_of


def verdicts(found: Evidence) -> dict[str, str]:
    return {finding.what: finding.verdict for finding in findings(found)}


def of(found: Evidence, start: str) -> str:
    (verdict,) = [verdict for what, verdict in verdicts(found).items() if what.startswith(start)]
    return verdict


def changed(worth: Callable[[RunSpec], float]) -> Evidence:
    found = canned_evidence(replace(QUICK, sweep_seeds=3))
    return replace(found, results={spec: result(worth(spec), spec) for spec in found.results})


def test_of_the_canned_study() -> None:
    found = canned_evidence()
    assert of(found, "Fig. 5, case A") == "reproduced"
    assert of(found, "Fig. 5, case H") == "reproduced"
    assert of(found, "Fig. 5, case L") == "not reproduced"  # PPO wins there too, which the paper does not say
    assert [verdict for what, verdict in verdicts(found).items() if "PPO's share" in what] == ["reached", "reached"]
    assert of(found, "Table IV") == "not measured at this size"
    assert of(found, "Fig. 7") == "reproduced"
    assert of(found, "Fig. 8") == "reproduced"
    assert of(found, "surrogate on held-out") == "reached"
    assert of(found, "Fig. 5 and 6") == "no difference shown, as in the paper"
    assert of(found, "harder world: does history") == "history earns its keep"
    assert of(found, "harder world: PPO") == "PPO wins"
    assert of(found, "PPO against a table") == "the table wins"


def test_of_learners_that_are_alike() -> None:
    found = changed(lambda spec: 2.5 + 0.001 * spec.seed)
    assert of(found, "Fig. 5, case A") == "not reproduced"
    assert of(found, "Fig. 5, case L") == "no difference shown, as in the paper"
    assert [verdict for what, verdict in verdicts(found).items() if "PPO's share" in what] == ["missed", "missed"]
    assert of(found, "Fig. 8") == "not reproduced"
    assert of(found, "harder world: does history") == "not shown"
    assert of(found, "harder world: PPO") == "DP from what is observed wins"


def test_half_a_claim_and_a_surrogate_that_costs_something() -> None:
    found = changed(lambda spec: worth_of(spec) + 0.4 * (spec.algorithm == "a2c") + 0.5 * (spec.reward == "table"))
    assert of(found, "Fig. 5, case A") == "half of it reproduced"
    assert of(found, "Fig. 5 and 6") == "not reproduced"


def test_ppo_that_no_table_reaches() -> None:
    found = canned_evidence()
    poor = {count: {TABLE: result(2.1), OPTIMUM: result(2.2)} for count in found.coarse}
    assert of(replace(found, coarse=poor), "PPO against a table") == "PPO wins"


def test_a_surrogate_that_misses_and_a_slow_training() -> None:
    found = canned_evidence()
    scores = {"r2": 0.94, "mse": 0.1, "mae": 0.2, "points": 72}
    validations = {
        world: [each | {"gain": scores, "ppl": None} for each in kept] for world, kept in found.validations.items()
    }
    assert of(replace(found, validations=validations), "surrogate on held-out") == "missed"
    slow = {spec: replace(each, train_s=200.0) for spec, each in found.results.items()}
    assert of(replace(found, results=slow), "Table IV") == "not measured at this size"
    found = canned_evidence(replace(QUICK, steps=240_000))
    slow = {spec: replace(each, train_s=200.0) for spec, each in found.results.items()}
    assert of(replace(found, results=slow), "Table IV") == "missed"
    quick = {spec: replace(each, train_s=99.0) for spec, each in slow.items()}
    assert of(replace(found, results=quick), "Table IV") == "reached"


def test_gains_and_not_perplexities_are_what_a_surrogate_is_judged_by() -> None:
    found = canned_evidence()
    poor = {"r2": 0.5, "mse": 0.1, "mae": 0.2, "points": 72}
    validations = {world: [each | {"gain": poor} for each in kept] for world, kept in found.validations.items()}
    assert of(replace(found, validations=validations), "surrogate on held-out") == "missed"


def test_one_seed_shows_nothing() -> None:
    found = canned_evidence(replace(QUICK, seeds=1))
    claims = ("Fig. 5, case", "Fig. 5 and 6", "Fig. 7", "Fig. 8", "harder world", "PPO against a table")
    said = [verdict for what, verdict in verdicts(found).items() if what.startswith(claims)]
    assert said == ["one seed shows nothing"] * 9


def test_a_table_as_good_as_ppo_is_no_win() -> None:
    found = canned_evidence()
    mean = found.mean([spec for spec in found.results if spec.tuned and spec.world == "authors"]).mean
    alike = {count: {TABLE: result(2.1), OPTIMUM: result(mean)} for count in found.coarse}
    assert of(replace(found, coarse=alike), "PPO against a table") == "no difference shown"


def test_a_trend_that_seeds_do_not_share_is_none() -> None:
    found = canned_evidence()
    down = ((0.02, 7), (0.1, 7), (0.2, 1), (0.3, 1))
    mixed = {spec: replace(each, choices=down) if spec.seed else each for spec, each in found.results.items()}
    assert of(replace(found, results=mixed), "Fig. 7") == "not reproduced"


def test_sweeps_are_held_against_the_values_that_the_paper_prefers() -> None:
    def as_in_the_paper(spec: RunSpec) -> float:
        is_good = (spec.learning_rate or 0) >= 1e-3 or spec.clip_range == 0.3 or spec.gae_lambda == 0.99
        return 3.0 + is_good + 0.001 * spec.seed

    assert of(changed(as_in_the_paper), "Fig. 9: learning rate") == "best 0.001; reproduced"
    assert of(changed(as_in_the_paper), "Fig. 9: clip range") == "best 0.3; reproduced"
    assert of(changed(as_in_the_paper), "Fig. 9: gae lambda") == "best 0.99; reproduced"
    worse = changed(lambda spec: 3.0 - (spec.clip_range == 0.3) + 0.001 * spec.seed)
    assert of(worse, "Fig. 9: clip range") == "best 0.1; not reproduced"
    assert of(worse, "Fig. 9: gae lambda") == "best 0.9; no differences shown"
