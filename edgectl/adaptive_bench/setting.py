"""From what `edgectl bench adaptive` is asked to a comparison: reads the files, loads the model here, then compares."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from agent.errors import ConfigError
from agent.wire.link_clock import MAX_DELAY_MS
from edgectl.adaptive_bench.bench import CONTROLLERS, STATIC, Comparison, Entrants, Run, Say, compare
from edgectl.adaptive_bench.damage_replay import load_all_layers, load_receiver
from edgectl.adaptive_bench.run import Trial, run_live
from edgectl.adaptive_bench.score import Offline
from edgectl.links_config import parse_rate
from edgectl.model_source import describe_model, locate_model
from edgectl.planning import ServedModel, ServingOptions
from edgectl.quality.table_file import read_table_of
from edgectl.quality.text_windows import WINDOW_TOKENS, read_text, windows_of
from planner.channel import Channel
from rl.arrays import IntArray
from rl.quality import BadQualityTable, QualityTable
from rl.reward import RewardWeights

PROMPT_TOKENS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is to be compared, by the names of files."""

    model: str
    quality: Path
    channel: Channel
    conceals_as_table: bool = False
    """What is lost is concealed as where the table was measured, whatever the channel says."""
    tokens: int
    """That each session generates, after PROMPT_TOKENS of the text."""
    policy: Path | None = None
    controllers: tuple[str, ...] = ()
    """Empty: all that can run."""
    text_tokens: int = 4096
    """Of the bundled text's end, that schedules are scored on; at least one session's length is."""
    latency_ms: float = 2.0
    rate: str = ""
    options: ServingOptions = field(default_factory=ServingOptions)


def fulfil(wish: Wish, directory: Path, say: Say, run: Run = run_live) -> Comparison:
    """Everything from files to rows; `run` has the live sessions.

    Raises ConfigError, AgentError, PlannerError, CommandFailure, ProcessFailed.
    """
    _check_radio(wish)
    located = locate_model(wish.model)
    model = describe_model(located)
    table = table_of(wish.quality, model)
    weights = _weights(wish.policy, model)
    channel = wish.channel
    if wish.conceals_as_table:
        channel = replace(channel, concealment=table.records[0].mitigation)
    everyone = (STATIC, *(name for name in CONTROLLERS if name != "policy" or wish.policy is not None))
    entrants = Entrants(names=wish.controllers or everyone, table=table, policy=wish.policy, weights=weights)
    positions = PROMPT_TOKENS + wish.tokens
    if positions > model.spec.max_positions:
        raise ConfigError(f"--tokens {wish.tokens}: {model.name} has {model.spec.max_positions} positions in all")
    window = min(WINDOW_TOKENS, positions - 1)
    segment = (positions - 1) // window
    windows = text_end(located.directory, model, max(wish.text_tokens // window, segment), window)
    trial = Trial(
        model=located,
        channel=channel,
        prompt=tuple(int(token) for token in windows.reshape(-1)[:PROMPT_TOKENS]),
        tokens=wish.tokens,
        codec=wish.options.codec or wish.options.boundary,
        latency_ms=wish.latency_ms,
        rate=wish.rate,
        options=wish.options,
    )
    say(f"loading {model.name} here, cut at {', '.join(map(str, table.splits))}")
    receiver = load_receiver(located, model)
    executor = load_all_layers(located, wish.options, positions, table.splits)
    try:
        return compare(directory, trial, entrants, Offline(executor, receiver, windows, segment), say=say, run=run)
    finally:
        executor.close()


def text_end(directory: Path, model: ServedModel, count: int, window: int) -> IntArray:
    """The last windows of the bundled text: tables are measured on its beginning. Raises ConfigError where it is
    shorter."""
    windows = windows_of(read_text(None), directory, model.spec.vocab_size, tokens=None, window=window).windows
    if len(windows) < count:
        raise ConfigError(f"--text-tokens: the text has {windows.size} tokens, {count * window} are asked for")
    return windows[-count:]


def table_of(path: Path, model: ServedModel) -> QualityTable:
    """A quality table of this model. Raises ConfigError naming the file and what is wrong with it."""
    try:
        table = read_table_of(path, model.name, model.digest, model.spec.num_layers)
    except BadQualityTable as problem:
        raise ConfigError(f"--quality {str(problem).removeprefix('quality table: ')}") from problem
    if table.splits[-1] >= model.spec.num_layers:
        raise ConfigError(f"--quality {path}: split {table.splits[-1]} leaves the edge no layer of {model.name}")
    return table


def _check_radio(wish: Wish) -> None:
    """Raises ConfigError, before agents are started that would refuse it."""
    if not 0.0 <= wish.latency_ms <= MAX_DELAY_MS:
        raise ConfigError(f"--latency-ms {wish.latency_ms:g} is outside 0 to {MAX_DELAY_MS:g}")
    try:
        if wish.rate:
            parse_rate(wish.rate)
    except (ValueError, OverflowError) as problem:
        raise ConfigError(f"--rate {wish.rate}: {problem}") from problem


def _weights(policy: Path | None, model: ServedModel) -> RewardWeights:
    """Those a policy was trained for, and refuses a policy of another model before anything starts."""
    if policy is None:
        return RewardWeights()
    from rl.policy import SplitPolicy
    from rl.policy_card import BadPolicy

    try:
        loaded = SplitPolicy.load(policy)
        loaded.require_model(model.name, model.spec.num_layers, model.digest)
    except BadPolicy as problem:
        named = str(problem).removeprefix(f"{policy}: ")
        raise ConfigError(f"--policy {policy}: {named}") from problem
    return loaded.card.weights
