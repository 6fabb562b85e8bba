"""The study's sections on learning: Fig. 5 to 9 and Table IV, each from its runs. Pure."""

from __future__ import annotations

from statistics import fmean

import numpy as np

from edgectl.splitting.evidence import Evidence, grouped
from edgectl.splitting.references import OPTIMUM, RANDOM, STATIC, STATIONARY
from edgectl.splitting.results import (
    Level,
    Panel,
    Row,
    Section,
    Table,
    Violin,
    choices_of,
    learning_curve,
    printed,
)
from edgectl.splitting.runs import RunSpec
from edgectl.splitting.sweeps import (
    AUTHORS_SETTINGS,
    CASES,
    figure_5,
    figure_5_model,
    figure_8,
    figure_9,
    setting_of,
)
from edgectl.splitting.worlds import QUALITY_WEIGHT
from rl.arrays import FloatArray
from rl.authors_table import SPLITS, authors_gain
from rl.evaluate import head_room
from rl.quality import Gain
from rl.reward import RewardWeights, split_reward
from rl.train_settings import TUNED

LEARNER_NAMES = {
    ("ppo", "surrogate", False): "PPO, surrogate",
    ("ppo", "table", False): "PPO, no surrogate",
    ("a2c", "surrogate", False): "A2C, surrogate",
    ("dqn", "surrogate", False): "DQN, surrogate",
    ("ppo", "surrogate", True): "PPO tuned, surrogate",
}
SETTING_NAMES = {
    "learning_rate": "learning rate",
    "batch_size": "batch size",
    "clip_range": "clip range",
    "gae_lambda": "GAE lambda",
}
AUTHORS_TRUE_STEPS = 6_000
"""Of their training with measured perplexities."""
AUTHORS_TRUE_S, AUTHORS_SURROGATE_S = 24 * 86_400.0, 7.7 * 60.0
"""What the paper says both took."""


def learning_section(found: Evidence) -> Section:
    """Fig. 5 on the authors' surface."""
    specs = figure_5(found.size)
    panels = tuple(
        _learning_panel(found, [spec for spec in specs if spec.case == case], f"case {case}") for case in CASES
    )
    return Section(
        "figure-5",
        "Fig. 5: learning curves, authors' surface",
        "Returns of training episodes, with exploration, so curves end below what the policies are worth; the tables "
        "give the latter: most likely actions, from the same starts for all, valued on the surface itself. Case A is "
        "the authors' own; cases L (low loss, near the input) and H (high loss, far from it) are reconstructed from "
        "their description. Of the paper we know the curves' order and no numbers. “No surrogate” is rewarded by the "
        "surface itself, “surrogate” by a network fitted to 72 points of it. “Tuned” is ours: rewards less their "
        f"mean, a discount of {TUNED.gamma:g}, rollouts of {TUNED.rollout:,} steps, a rate that falls to zero; "
        "everything else has the authors' settings. A2C steps 16 environments at once, DQN 8, to be quick.",
        panels=panels,
        tables=(_worth(found, list(specs)),),
    )


def model_section(found: Evidence) -> Section:
    """Fig. 5 on the model's own table."""
    specs = list(figure_5_model(found.size))
    return Section(
        "figure-5-model",
        f"Fig. 5 again on {found.measured.whole.model}: its own perplexities, the paper's state (sigma, m, l)",
        "The Nakagami shape m walks, the loss follows from it (equation 5), sigma stays what an episode began with. "
        f"Rewards come from the grid measured under equation 3 whole, with a weight of {QUALITY_WEIGHT:g} on quality. "
        f"The authors' 10 was made for their surface. {_deepest(found)}",
        panels=(_learning_panel(found, specs, "sigma, m and l observed"),),
        tables=(_worth(found, specs),),
    )


def _learning_panel(found: Evidence, specs: list[RunSpec], title: str) -> Panel:
    groups = grouped(specs, "algorithm", "reward", "tuned")
    curves = tuple(learning_curve(LEARNER_NAMES[key], found.of(group)) for key, group in groups.items())
    levels = tuple(Level(name, found.reference(specs[0], name)) for name in (RANDOM, STATIC, OPTIMUM))
    return Panel(title, "steps", "return of an episode", curves, levels)


def _worth(found: Evidence, specs: list[RunSpec]) -> Table:
    """What policies are worth, with references, per case."""
    rows = []
    for (case,), group in grouped(specs, "case").items():
        first = group[0]
        random, best = found.reference(first, RANDOM), found.reference(first, STATIONARY)
        for name, reference in found.references[first.world, first.case, first.actions].items():
            value = reference.mean
            rows.append(Row(f"{case}: {name}", (f"{value:.3f}", f"{head_room(value, random, best):.3f}", "-")))
        for key, same in grouped(group, "algorithm", "reward", "tuned").items():
            mean = found.mean(same)
            share = f"{head_room(mean.mean, random, best):.3f}"
            rows.append(Row(f"{case}: {LEARNER_NAMES[key]}", (printed(mean), share, f"{same[0].steps:,}")))
    return Table(
        "Worth of policies; head-room is the share of the way from random to the best stationary policy",
        ("case and policy", "mean return", "share of head-room", "steps"),
        tuple(rows),
    )


def table_iv(found: Evidence) -> Section:
    """Time and memory with and without surrogate, the latter extrapolated and marked so."""
    surrogate = found.of(spec for spec in figure_5_model(found.size) if _is(spec, "ppo", "surrogate"))
    steps = next(spec.steps for spec in figure_5_model(found.size) if _is(spec, "ppo", "surrogate"))
    per_step = sum(result.train_s for result in surrogate) / len(surrogate) / steps
    longest = found.of(spec for spec in figure_5(found.size) if spec.case == "A" and _is(spec, "ppo", "surrogate"))
    trained_s = sum(result.train_s for result in longest) / len(longest)
    truth = found.truth
    true_steps = max(int(truth.notes.get("steps", 0)), 1)
    true_per_step = truth.train_s / true_steps
    grid_s = found.seconds.get("grid: whole", 0.0)
    memory = max(result.peak_rss_bytes for result in surrogate)
    rows = (
        Row("surrogate, per step, this model", (f"{1e3 * per_step:.3f} ms", "measured", "-")),
        Row(
            f"surrogate, {found.size.steps:,} steps, authors' surface",
            (_duration(trained_s), "measured", _duration(AUTHORS_SURROGATE_S)),
        ),
        Row("grid that the model's surrogate is fitted to", (_duration(grid_s), "measured", "not printed")),
        Row("true perplexity, per step", (f"{1e3 * true_per_step:.0f} ms", f"measured over {true_steps} steps", "-")),
        Row(
            f"true perplexity, {AUTHORS_TRUE_STEPS:,} steps",
            (_duration(AUTHORS_TRUE_STEPS * true_per_step), "extrapolated", _duration(AUTHORS_TRUE_S)),
        ),
        Row(
            f"true perplexity, {found.size.steps:,} steps",
            (_duration(found.size.steps * true_per_step), "extrapolated", "-"),
        ),
        Row("peak memory, surrogate", (f"{memory / 2**20:.0f} MiB", "measured, whole process", "not found")),
        Row("peak memory, true perplexity", (f"{truth.peak_rss_bytes / 2**20:.0f} MiB", "the same", "not found")),
    )
    ratio = true_per_step / per_step
    return Section(
        "table-iv",
        "Table IV: time and memory with and without surrogate",
        f"A step with a measured perplexity takes {ratio:,.0f} times as long as one with a surrogate, on "
        f"{found.measured.whole.model} with {found.size.grid_tokens:,} tokens of text. The paper's 24 days and 7.7 "
        f"minutes are of {AUTHORS_TRUE_STEPS:,} and 240,000 steps on Llama-2-7B. Extrapolated numbers are the measured "
        "cost per step times the steps, and were not run.",
        tables=(Table("", ("what", "here", "how", "paper"), rows),),
    )


def _is(spec: RunSpec, algorithm: str, reward: str) -> bool:
    return (spec.algorithm, spec.reward, spec.tuned) == (algorithm, reward, False)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} days"


def violins_section(found: Evidence) -> Section:
    """Fig. 6."""
    specs = [spec for spec in figure_5(found.size) if spec.case == "A"]
    with_surrogate = [spec for spec in specs if _is(spec, "ppo", "surrogate")]
    without = [spec for spec in specs if _is(spec, "ppo", "table")]
    names = found.references["authors", "A", 9]
    untrained = tuple(value for result in found.of(without) for value in result.untrained_returns)
    return Section(
        "figure-6",
        "Fig. 6: returns of trained, surrogate-trained, random and untrained policies",
        "Case A, nine actions, episodes from common starts, all seeds together. An untrained network is deterministic, "
        f"the same moves from the same states: it earns {fmean(untrained):.3f}, random moves {names[RANDOM].mean:.3f}.",
        violins=(
            found.violin("PPO, no surrogate", without),
            found.violin("PPO, surrogate", with_surrogate),
            Violin("random", names[RANDOM].returns),
            Violin("untrained PPO", untrained),
            Violin("best static split", names[STATIC].returns),
            Violin("optimum (DP)", names[OPTIMUM].returns),
        ),
    )


def choices_section(found: Evidence) -> Section:
    """Fig. 7 in both worlds, with what the optimum chooses."""
    choices = []
    for specs, title in ((figure_5(found.size), "authors' surface"), (figure_5_model(found.size), "the model's table")):
        chosen = [spec for spec in specs if spec.case == "A" and _is(spec, "ppo", "surrogate")]
        points = [point for result in found.of(chosen) for point in result.choices]
        choices.append(choices_of(f"PPO, {title}", points))
        first = chosen[0]
        optimal = found.references[first.world, "A", first.actions][OPTIMUM].choices
        choices.append(choices_of(f"optimum, {title}", optimal))
    return Section(
        "figure-7",
        "Fig. 7: split chosen against loss",
        "Where episodes end. The paper shows a rising trend; we know of no printed slope or R². On the authors' "
        f"surface the reward of one step is highest at layer {_best_layers()}, whatever the loss, and nowhere between: "
        "what is best is a step, which a straight line cannot follow.",
        choices=tuple(choices),
    )


def _best_layers() -> str:
    """Of the authors' surface, over the losses of case A."""
    best = _best_splits(authors_gain(), SPLITS, np.linspace(0.01, 0.30, 59), 0.0, RewardWeights())
    return " or ".join(f"{split}" for split in sorted(set(best)))


def _deepest(found: Evidence) -> str:
    """How often the deepest split is best on the grid, by either weight of quality."""
    table = found.measured.whole
    losses = np.array(table.losses)
    shares = []
    for quality in (RewardWeights().quality, QUALITY_WEIGHT):
        weights = RewardWeights(quality=quality)
        best = [each for s in table.sigmas for each in _best_splits(table.gain, table.splits, losses, s, weights)]
        shares.append(f"with {quality:g} it is at {best.count(table.splits[-1])} of {len(best)} channels")
    return f"Where the deepest split is best there is nothing to decide: {', '.join(shares)} of the grid."


def _best_splits(
    gain: Gain, splits: tuple[int, ...], losses: FloatArray, sigma: float, weights: RewardWeights
) -> list[int]:
    """Per loss, the split whose step earns most."""
    loss, layers = (each.ravel() for each in np.meshgrid(losses, np.array(splits, np.float64), indexing="ij"))
    earned = split_reward(weights, gain(loss, layers, np.full(len(loss), sigma)), layers, float(splits[-1]))
    return [splits[at] for at in np.argmax(earned.reshape(len(losses), -1), axis=1).tolist()]


def action_sets_section(found: Evidence) -> Section:
    """Fig. 8."""
    specs = figure_8(found.size)
    groups = grouped(specs, "actions")
    rows = []
    for (actions,), group in groups.items():
        random, best = found.reference(group[0], RANDOM), found.reference(group[0], STATIONARY)
        mean = found.mean(group)
        share = head_room(mean.mean, random, best)
        optimum = found.reference(group[0], OPTIMUM)
        rows.append(Row(f"{actions} actions", (printed(mean), f"{share:.3f}", f"{optimum:.3f}", f"{random:.3f}")))
    curves = tuple(learning_curve(f"{actions} actions", found.of(group)) for (actions,), group in groups.items())
    return Section(
        "figure-8",
        "Fig. 8: sets of 3, 5 and 9 actions",
        "PPO with surrogate, case A. In the paper larger sets end higher; the exact optimum says that they must: a "
        "larger set reaches the best layer in fewer steps, and does nothing else.",
        panels=(Panel("case A", "steps", "return of an episode", curves),),
        tables=(Table("", ("set", "PPO", "share of head-room", "optimum (DP)", "random"), tuple(rows)),),
    )


def sweeps_section(found: Evidence) -> Section:
    """Fig. 9: learning curves per value of each hyper-parameter."""
    panels, rows = [], []
    for name, specs in figure_9(found.size).items():
        groups: dict[float, list[RunSpec]] = {}
        for spec in specs:
            groups.setdefault(setting_of(spec, name), []).append(spec)
        curves = tuple(learning_curve(f"{value:g}", found.of(group)) for value, group in groups.items())
        panels.append(Panel(SETTING_NAMES[name], "steps", "return of an episode", curves))
        for value, group in groups.items():
            mark = " (the authors')" if value == AUTHORS_SETTINGS[name] else ""
            rows.append(Row(f"{SETTING_NAMES[name]} {value:g}{mark}", (printed(found.mean(group)),)))
    return Section(
        "figure-9",
        "Fig. 9: learning rate, batch size, clip range, GAE lambda",
        f"PPO with surrogate, case A, {found.size.sweep_steps:,} steps, {found.size.sweep_seeds} seeds; one value "
        "changed at a time. In the paper the two high learning rates, a clip range of 0.3 and a lambda of 0.99 do "
        "best; we know of no numbers for them.",
        panels=tuple(panels),
        tables=(Table("Worth of the policies", ("setting", "mean return"), tuple(rows)),),
    )
