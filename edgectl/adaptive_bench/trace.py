"""The radio of `edgectl bench adaptive`: a trace that was recorded, or one drawn from fading whose shape walks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from agent.errors import ConfigError
from planner.channel import MAX_COHERENCE_TOKENS, MAX_STATES, Channel, ChannelState, Concealment, Granularity


@dataclass(frozen=True, slots=True, kw_only=True)
class Walk:
    """Fading whose Nakagami shape m walks: "Adaptive Layer Splitting" (arXiv 2406.02616), equations 3 to 5, in time."""

    tokens: int
    """Positions before the trace begins again."""
    start_m: float = 1.5
    step: float = 0.5
    """Standard deviation of a step of m."""
    hold_tokens: int = 16
    """For so many tokens m stays; gains are drawn afresh for each."""
    sigma: float = 0.0
    """Of the noise on every element, in units of the hidden states."""
    faded: bool = True
    """Multiply by the gain h: equation 3 whole. Otherwise only what is lost, and noise, follows m."""
    seed: int = 0
    granularity: Granularity = "element"
    concealment: Concealment = "rescale"


def walking_channel(walk: Walk) -> Channel:
    """The same walk always gives the same channel. Raises ConfigError naming what is no walk."""
    import numpy as np

    from rl.channel import fading_channel, loss_probability, m_walk

    if not 1 <= walk.tokens <= MAX_STATES or not 1 <= walk.hold_tokens <= MAX_COHERENCE_TOKENS:
        most = f"1 to {MAX_STATES}, 1 to {MAX_COHERENCE_TOKENS}"
        raise ConfigError(f"a walk of {walk.tokens} tokens, {walk.hold_tokens} at a time: {most}")
    if walk.seed < 0 or not 0.0 <= walk.step < float("inf"):
        raise ConfigError(f"a walk with seed {walk.seed} and steps of {walk.step}: neither can be less than 0")
    rng = np.random.default_rng(walk.seed)
    try:
        steps = m_walk(walk.start_m, -(-walk.tokens // walk.hold_tokens), rng, walk.step)
        shapes = np.repeat(steps, min(walk.hold_tokens, walk.tokens))[: walk.tokens]
        plan = Channel((ChannelState(),), granularity=walk.granularity, concealment=walk.concealment)
        if walk.faded:
            return fading_channel(shapes, walk.tokens, rng, sigma=walk.sigma, seed=walk.seed, plan=plan)
        states = tuple(
            ChannelState(loss=float(loss), sigma=walk.sigma, m=float(m))
            for loss, m in zip(loss_probability(shapes), shapes, strict=True)
        )
        return Channel(states, walk.seed, granularity=walk.granularity, concealment=walk.concealment)
    except ValueError as problem:
        raise ConfigError(f"a walk from m {walk.start_m} with sigma {walk.sigma}: {problem}") from problem


def recorded_channel(path: Path) -> Channel:
    """A recorded channel. Raises ConfigError naming the file and what is wrong with it."""
    from edgectl.adaptive.trace_file import read_trace
    from rl.trace import BadTrace

    try:
        return read_trace(path)
    except BadTrace as problem:
        raise ConfigError(f"--trace {str(problem).removeprefix('channel trace: ')}") from problem
