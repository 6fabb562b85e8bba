"""What the study says of the paper's claims and of our targets, one line each, by its numbers. Pure."""

from __future__ import annotations

from edgectl.splitting.comparisons import SURROGATE_EVALUATIONS, history_intervals
from edgectl.splitting.evidence import Evidence, compared, grouped, is_above
from edgectl.splitting.quality import quality_findings
from edgectl.splitting.references import AHEAD, HYSTERESIS, OPTIMUM, PLANNER, RANDOM, STATIC, STATIONARY, TABLE
from edgectl.splitting.results import Finding, choices_of, printed
from edgectl.splitting.runs import RunSpec, World
from edgectl.splitting.surrogates import LEAST_R2, chosen_scores
from edgectl.splitting.sweeps import CASES, figure_5, figure_8, figure_9, harder_world, setting_of
from rl.evaluate import Interval, head_room

LEAST_HEAD_ROOM = 0.95
MOST_TRAINING_S, TRAINING_STEPS = 180.0, 240_000
ONE_SEED = "one seed shows nothing"
NOT_WORSE = "; the paper's not shown to be worse"
ALIKE = "no difference shown, as in the paper"
WORLDS: tuple[World, ...] = ("authors", "model")
"""That have a surrogate each."""
UNLEARNED = (STATIC, PLANNER, TABLE, HYSTERESIS, AHEAD)
"""Controllers that could be deployed as they are, and see what a policy sees."""


def findings(found: Evidence) -> tuple[Finding, ...]:
    """In the order of the report."""
    return (
        *quality_findings(found.measured, found.seconds.get("grid: erasure", 0.0)),
        _surrogate(found),
        *(_learners(found, case) for case in CASES),
        _target(found, tuned=True),
        _target(found, tuned=False),
        _surrogate_costs_nothing(found),
        _training_time(found),
        _trend(found),
        _action_sets(found),
        *_sweeps(found),
        _table_against_learning(found),
        _harder(found),
        _history(found),
    )


def _runs(
    found: Evidence, case: str, algorithm: str, reward: str = "surrogate", *, tuned: bool = False
) -> list[RunSpec]:
    wanted = (case, algorithm, reward, tuned)
    return [spec for spec in figure_5(found.size) if (spec.case, spec.algorithm, spec.reward, spec.tuned) == wanted]


def _surrogate(found: Evidence) -> Finding:
    """By gains, which rewards are made of; perplexities are easier to predict."""
    parts, least = [], 1.0
    for world in WORLDS:
        gain, ppl = chosen_scores(found.validations, world)
        parts.append(f"{world} {gain.r2:.4f} (MSE {gain.mse:.2g}, MAE {gain.mae:.2g})")
        if ppl is not None:
            parts.append(f"its perplexities {ppl.r2:.4f} (MSE {ppl.mse:.2g}, MAE {ppl.mae:.2g})")
        least = min(least, gain.r2)
    return Finding(
        "surrogate on held-out points: R² of gains", f"≥ {LEAST_R2}", ", ".join(parts), _reached(least >= LEAST_R2)
    )


def _learners(found: Evidence, case: str) -> Finding:
    means = {name: found.mean(_runs(found, case, name)) for name in ("ppo", "a2c", "dqn")}
    signs = [compared(means["ppo"], means[name]) for name in ("a2c", "dqn")]
    expected = ["≈", "≈"] if case == "L" else [">", ">"]
    paper = "PPO ≈ A2C, DQN" if case == "L" else "PPO > A2C, DQN"
    ours = f"PPO {printed(means['ppo'])} {signs[0]} A2C {printed(means['a2c'])}; {signs[1]} DQN {printed(means['dqn'])}"
    right = sum(sign == wanted for sign, wanted in zip(signs, expected, strict=True))
    all_right = ALIKE if case == "L" else "reproduced"
    verdict = {0: "not reproduced", 1: "half of it reproduced", 2: all_right}[right]
    return Finding(f"Fig. 5, case {case}", paper, ours, verdict if means["ppo"].half is not None else ONE_SEED)


def _target(found: Evidence, *, tuned: bool) -> Finding:
    runs = _runs(found, "A", "ppo", tuned=tuned)
    random, best = found.reference(runs[0], RANDOM), found.reference(runs[0], STATIONARY)
    mean = found.mean(runs)
    share = head_room(mean.mean, random, best)
    return Finding(
        f"PPO's share of the head-room, case A, 9 actions, {found.size.seeds} seeds, {found.size.starts:,} starts, "
        f"{'our' if tuned else 'the authors’'} settings",
        f"≥ {LEAST_HEAD_ROOM}",
        f"{share:.3f}: {printed(mean)} between random {random:.3f} and best stationary {best:.3f}; "
        f"finite-horizon optimum {found.reference(runs[0], OPTIMUM):.3f}",
        _reached(share >= LEAST_HEAD_ROOM),
    )


def _surrogate_costs_nothing(found: Evidence) -> Finding:
    with_surrogate = found.mean(_runs(found, "A", "ppo"))
    without = found.mean(_runs(found, "A", "ppo", "table"))
    sign = compared(with_surrogate, without)
    return Finding(
        "Fig. 5 and 6: with a surrogate PPO ends where it does without",
        "yes",
        f"{printed(with_surrogate)} {sign} {printed(without)}",
        ONE_SEED if without.half is None else ALIKE if sign == "≈" else "not reproduced",
    )


def _training_time(found: Evidence) -> Finding:
    times = [result.train_s for result in found.of(_runs(found, "A", "ppo"))]
    return Finding(
        f"Table IV: PPO with surrogate, {found.size.steps:,} steps",
        "7.7 min; target ≤ 3 min for 240,000",
        f"{sum(times) / len(times):.0f} s, the slowest {max(times):.0f} s, {found.processes} at a time",
        _reached(max(times) <= MOST_TRAINING_S) if found.size.steps >= TRAINING_STEPS else "not measured at this size",
    )


def _trend(found: Evidence) -> Finding:
    results = found.of(_runs(found, "A", "ppo"))
    together = choices_of("", [point for result in results for point in result.choices])
    slope = Interval.of([choices_of("", result.choices).slope for result in results])
    rises = slope.half is not None and slope.mean > slope.half
    return Finding(
        "Fig. 7: the split moves towards the output as loss grows",
        "yes",
        f"slope {printed(slope)} layers per unit of loss, R² {together.r_squared:.2f}",
        ONE_SEED if slope.half is None else "reproduced" if rises else "not reproduced",
    )


def _action_sets(found: Evidence) -> Finding:
    means = {actions: found.mean(group) for (actions,), group in grouped(figure_8(found.size), "actions").items()}
    ascending = [means[actions].mean for actions in sorted(means)]
    apart = is_above(means[max(means)], means[min(means)])
    ours = ", ".join(f"{actions}: {printed(means[actions])}" for actions in sorted(means))
    verdict = "reproduced" if ascending == sorted(ascending) and apart else "not reproduced"
    is_one = means[max(means)].half is None
    return Finding("Fig. 8: larger action sets end higher", "yes", ours, ONE_SEED if is_one else verdict)


def _sweeps(found: Evidence) -> list[Finding]:
    """The paper names good values of three of the four."""
    claims: dict[str, tuple[str, tuple[float, ...]]] = {
        "learning_rate": ("the two high ones are good", (1e-3, 3e-3)),
        "batch_size": ("swept, no claim known", ()),
        "clip_range": ("0.3 is best", (0.3,)),
        "gae_lambda": ("0.99 is best", (0.99,)),
    }
    made = []
    for name, specs in figure_9(found.size).items():
        values: dict[float, list[RunSpec]] = {}
        for spec in specs:
            values.setdefault(setting_of(spec, name), []).append(spec)
        means = {value: found.mean(group) for value, group in values.items()}
        best = max(means, key=lambda value: means[value].mean)
        ours = ", ".join(f"{value:g}: {printed(mean)}" for value, mean in means.items())
        as_good = [value for value, mean in means.items() if value == best or compared(means[best], mean) == "≈"]
        claim, good = claims[name]
        verdict = f"best {best:g}"
        if len(as_good) == len(means):
            verdict += "; no differences shown"
        elif good:
            verdict += "; not reproduced" if set(good) - set(as_good) else "; reproduced" if best in good else NOT_WORSE
        made.append(Finding(f"Fig. 9: {name.replace('_', ' ')}", claim, ours, verdict))
    return made


def _table_against_learning(found: Evidence) -> Finding:
    """At equal true evaluations: the surrogate is fitted to as many points as the table has."""
    runs = _runs(found, "A", "ppo", tuned=True)
    random, best = found.reference(runs[0], RANDOM), found.reference(runs[0], STATIONARY)
    learned = found.mean(runs)
    solved = found.coarse[SURROGATE_EVALUATIONS][OPTIMUM].mean
    fewest = next((n for n in sorted(found.coarse) if found.coarse[n][OPTIMUM].mean >= learned.mean), None)
    where = f"already at {fewest} evaluations" if fewest is not None else "at no number tried"
    return Finding(
        f"PPO against a table with dynamic programming, {SURROGATE_EVALUATIONS} true evaluations each",
        "not in the paper",
        f"table {solved:.3f} ({head_room(solved, random, best):.3f} of the head-room), PPO on a surrogate "
        f"{printed(learned)} ({head_room(learned.mean, random, best):.3f}); the table has its mean {where}",
        _against(learned, solved, "the table"),
    )


def _harder(found: Evidence) -> Finding:
    """Against what could be deployed without learning; the stationary optimum knows the channel, which nobody does."""
    specs = harder_world(found.size)
    best = max(history_intervals(found).values(), key=lambda each: each.mean)
    names = found.references[specs[0].world, specs[0].case, specs[0].actions]
    simple = {name: found.reference(specs[0], name) for name in UNLEARNED if name in names}
    name = max(simple, key=lambda each: simple[each])
    return Finding(
        "harder world: PPO against the best controller that learns nothing",
        "not in the paper",
        f"PPO {printed(best)}, {name} {simple[name]:.3f}, finite-horizon optimum "
        f"{found.reference(specs[0], OPTIMUM):.3f} (knows the channel)",
        _against(best, simple[name], name),
    )


def _history(found: Evidence) -> Finding:
    by_history = history_intervals(found)
    short, long = min(by_history), max(by_history)
    sign = compared(by_history[long], by_history[short])
    verdict = {">": "history earns its keep", "≈": "not shown", "<": "history does harm at this many steps"}[sign]
    verdict = ONE_SEED if by_history[long].half is None else verdict
    ours = f"last {long} observations {printed(by_history[long])} {sign} present one {printed(by_history[short])}"
    return Finding("harder world: does history matter?", "not in the paper", ours, verdict)


def _against(learned: Interval, other: float, name: str) -> str:
    """Who wins, where the other is one number, and so outside the interval over seeds or not."""
    if learned.half is None:
        return ONE_SEED
    if abs(learned.mean - other) <= learned.half:
        return "no difference shown"
    return "PPO wins" if learned.mean > other else f"{name} wins"


def _reached(is_so: bool) -> str:
    return "reached" if is_so else "missed"
