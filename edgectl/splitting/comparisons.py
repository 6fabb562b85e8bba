"""The study's sections that hold learning against what needs none: at equal evaluations, and where moves cost. Pure."""

from __future__ import annotations

from statistics import fmean

from edgectl.splitting.evidence import Evidence, compared, grouped
from edgectl.splitting.references import OPTIMUM, RANDOM, STATIC, STATIONARY, TABLE
from edgectl.splitting.results import Curve, CurvePoint, Level, Panel, Row, Section, Table, learning_curve, printed
from edgectl.splitting.runs import RunSpec
from edgectl.splitting.sweeps import equal_evaluations, figure_5, harder_world
from rl.evaluate import Interval, head_room

SURROGATE_EVALUATIONS = 72
"""That the surrogate on the authors' surface is fitted to."""
NAMES = {"ppo": "PPO", "a2c": "A2C", "dqn": "DQN"}


def equal_evaluations_section(found: Evidence) -> Section:
    """Return against the number of true evaluations of the authors' surface, one per step of learning."""
    plain = RunSpec()
    random, best = found.reference(plain, RANDOM), found.reference(plain, STATIONARY)
    groups = grouped(equal_evaluations(found.size), "algorithm", "steps")
    lines: dict[str, dict[int, Interval]] = {}
    for count, both in found.coarse.items():
        for name, label in ((TABLE, "table, greedy"), (OPTIMUM, "table + DP")):
            lines.setdefault(label, {})[count] = Interval(both[name].mean, None)
    for (algorithm, steps), group in groups.items():
        # A learner stops after whole rollouts: what it really took is what it paid.
        paid = round(fmean(result.notes.get("steps", steps) for result in found.of(group)))
        lines.setdefault(f"{NAMES[algorithm]} on true rewards", {})[paid] = found.mean(group)
    fitted = [spec for spec in figure_5(found.size) if spec.case == "A" and spec.reward == "surrogate"]
    for (algorithm, tuned), group in grouped(fitted, "algorithm", "tuned").items():
        lines[f"{NAMES[algorithm]}{' tuned' if tuned else ''} on a surrogate ({group[0].steps:,} steps)"] = {
            SURROGATE_EVALUATIONS: found.mean(group)
        }
    rows = [
        Row(name, (f"{count:,}", printed(value), f"{head_room(value.mean, random, best):.3f}"))
        for name, values in lines.items()
        for count, value in sorted(values.items())
    ]
    curves = tuple(
        Curve(name, tuple(CurvePoint(count, value) for count, value in sorted(values.items())))
        for name, values in lines.items()
    )
    names = (RANDOM, STATIC, STATIONARY, OPTIMUM)
    levels = tuple(Level(name, found.reference(plain, name)) for name in names)
    return Section(
        "equal-evaluations",
        "Who needs how many true perplexities",
        "Authors' surface, case A, nine actions. A learner on true rewards pays one evaluation per step; a table pays "
        "one per cell and then knows everything between by interpolation; a surrogate pays its training set and learns "
        "for as long as it likes. What a gain is relative to, the mean perplexity of the splits, all are told for "
        f"free. {_saved(found)}",
        panels=(Panel("worth of the policy", "true evaluations", "mean return", curves, levels, ("x",)),),
        tables=(Table("", ("who", "evaluations", "mean return", "share of head-room"), tuple(rows)),),
    )


def _saved(found: Evidence) -> str:
    """What the same evaluations come to, solved and learned from."""
    groups = grouped(equal_evaluations(found.size), "algorithm", "steps")
    (algorithm, steps), runs = max(groups.items(), key=lambda each: found.mean(each[1]).mean)
    solved = found.coarse[SURROGATE_EVALUATIONS][OPTIMUM].mean
    return (
        f"Dynamic programming on a table of {SURROGATE_EVALUATIONS} is worth {solved:.3f}, the best learner on true "
        f"rewards ({NAMES[algorithm]}, {steps:,} of them) {printed(found.mean(runs))}."
    )


def harder_section(found: Evidence) -> Section:
    """Whether a policy earns its keep where moving costs and the channel has a memory."""
    specs = harder_world(found.size)
    first = specs[0]
    random, best = found.reference(first, RANDOM), found.reference(first, STATIONARY)
    names = found.references[first.world, first.case, first.actions]
    rows = [
        Row(name, (f"{result.mean:.3f}", f"{head_room(result.mean, random, best):.3f}", f"{result.notes['moves']:.3f}"))
        for name, result in names.items()
    ]
    groups = grouped(specs, "history")
    for (history,), group in groups.items():
        mean = found.mean(group)
        moves = sum(result.notes["moves"] for result in found.of(group)) / len(group)
        rows.append(
            Row(_history_name(history), (printed(mean), f"{head_room(mean.mean, random, best):.3f}", f"{moves:.3f}"))
        )
    curves = tuple(learning_curve(_history_name(history), found.of(group)) for (history,), group in groups.items())
    levels = tuple(Level(name, names[name].mean) for name in (STATIC, TABLE, OPTIMUM))
    return Section(
        "harder-world",
        "A harder, truer world: does a policy, or its memory, earn its keep?",
        "Quality is the model's own table under equation 3. The loss is what was counted over some hundred packets, "
        "m has a trend, the SNR walks and sets noise and goodput, a move sends the keys and values of its layers "
        "over the same link, and latency and energy enter the reward. Milliseconds, joules and bytes are those of "
        "Llama-2-7B on EdgeShard's testbed, from the planner's cost model: they are calibrated, not measured. "
        f"Quality weighs 4, as in the model's other world; episodes have 20 decisions. {_history_verdict(found)}",
        panels=(Panel("moving costs", "steps", "return of an episode", curves, levels),),
        tables=(Table("", ("policy", "mean return", "share of head-room", "moves per decision"), tuple(rows)),),
    )


def history_intervals(found: Evidence) -> dict[int, Interval]:
    """By observations that the policy sees at once."""
    return {history: found.mean(group) for (history,), group in grouped(harder_world(found.size), "history").items()}


def _history_verdict(found: Evidence) -> str:
    by_history = history_intervals(found)
    short, long = min(by_history), max(by_history)
    sign = compared(by_history[long], by_history[short])
    said = {
        ">": "it earns its keep: the intervals are apart",
        "≈": "it does not show: the intervals overlap",
        "<": "it does harm at this many steps: there is more to learn from the same",
    }
    return (
        f"With the last {long} observations PPO is worth {printed(by_history[long])}, with the present one "
        f"{printed(by_history[short])}: as for memory, {said[sign]}."
    )


def _history_name(history: int) -> str:
    return "PPO tuned, present observation" if history == 1 else f"PPO tuned, last {history} observations"
