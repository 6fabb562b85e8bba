"""The channel of an emulated link: keys of a `[[links]]` table, and the realisation they name.

Loss, noise and fading are drawn once, when the file is read: a seed or a trace says all of it, so that two runs of one
cluster.toml damage the same elements.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import msgspec

from agent.errors import ConfigError
from edgectl.adaptive.trace_file import read_trace
from planner.channel import (
    MAX_COHERENCE_TOKENS,
    MAX_PACKET_BYTES,
    MIN_PACKET_BYTES,
    Channel,
    ChannelState,
    Concealment,
    Granularity,
    Protection,
)
from rl.trace import BadTrace

FADING_STATES = 2048
"""Of a fading that is drawn here: a context that long meets no state twice, and a message about it has 200 KB."""
MAX_SEED = (1 << 63) - 1
MOST_SIGMA = 1e6
"""Hidden states have tens; more noise than that is a number that somebody mistyped."""

DEFAULT_CONCEALMENT: Concealment = "lmmse"
"""The best of what was measured at equal loss (docs/damage.md); without a calibration agents take `rescale`."""


class ChannelKeys(msgspec.Struct, frozen=True, kw_only=True):
    """What happens to hidden states on an emulated link; nothing where no key is given."""

    loss: float = 0.0
    """Share of the elements of hidden states that is erased on the way, 0 to 1."""

    seed: int = 0
    """Of jitter, loss, noise and fading: the same seed gives the same ones."""

    channel: str = ""
    """A trace: a file with the channel's states, one after the other. Empty: the keys here say what happens."""

    nakagami_m: float | None = None
    """Fading of this shape, 0.5 or more; 1 is Rayleigh. The loss follows from it, and a gain is drawn per state."""

    nakagami_walk: float = 0.0
    """Standard deviation of the steps by which the shape walks from state to state, between 0.5 and 3."""

    equalised: bool = False
    """The receiver undoes the gain, which raises the noise where it is small."""

    sigma: float = 0.0
    """Standard deviation of Gaussian noise on each element, in units of the hidden states."""

    snr_db: float | None = None
    """Noise by its ratio to each token's own mean square, in place of `sigma`."""

    granularity: Granularity | None = None
    """What is lost at once: "element" (default) or "packet"."""

    packet: int | None = None
    """Payload of a datagram in bytes, default 1200."""

    interleaved: bool | None = None
    """Whether a packet's elements lie far apart; default false."""

    concealment: Concealment | None = None
    """What is put in place of what is lost: "zero", "rescale", "mean", "previous" or "lmmse" (default)."""

    protection: Protection | None = None
    """What is sent twice of the strongest channels: "none" (default), "repeat" or "int8"."""

    coherence_tokens: int | None = None
    """Tokens over which a state stays as it is, default 1."""


def read_channel(keys: ChannelKeys, where: str) -> Channel | None:
    """The channel that the keys describe; None where nothing happens to hidden states.

    Raises ConfigError naming `where` and the key.
    """
    _check(keys, where)
    if keys.channel:
        channel = _recorded(Path(keys.channel), f"{where}.channel")
    else:
        channel = _drawn(keys)
        if channel.is_clean:
            return None
    changes = {
        field: value
        for field, value in (
            ("granularity", keys.granularity),
            ("packet_bytes", keys.packet),
            ("interleaved", keys.interleaved),
            ("protection", keys.protection),
            ("coherence_tokens", keys.coherence_tokens),
            ("concealment", keys.concealment),
        )
        if value is not None
    }
    return replace(channel, **changes)  # type: ignore[arg-type]


def _drawn(keys: ChannelKeys) -> Channel:
    head = Channel((ChannelState(),), keys.seed, concealment=DEFAULT_CONCEALMENT)
    if keys.nakagami_m is None:
        return replace(head, states=(ChannelState(loss=keys.loss, sigma=keys.sigma, snr_db=keys.snr_db),))
    # Here: nobody else who reads a cluster.toml waits for scipy.
    import numpy as np

    from rl.channel import fading_channel, m_walk

    rng = np.random.default_rng(keys.seed)
    walks = keys.nakagami_walk > 0
    return fading_channel(
        m_walk(keys.nakagami_m, FADING_STATES, rng, keys.nakagami_walk) if walks else keys.nakagami_m,
        FADING_STATES,
        rng,
        sigma=keys.sigma,
        snr_db=keys.snr_db,
        seed=keys.seed,
        equalised=keys.equalised,
        plan=head,
    )


def _recorded(path: Path, where: str) -> Channel:
    try:
        return read_trace(path)
    except BadTrace as problem:
        raise ConfigError(f"{where}: {problem}") from problem


def _check(keys: ChannelKeys, where: str) -> None:
    for key, value, least, most in (
        ("loss", keys.loss, 0.0, 1.0),
        ("seed", keys.seed, 0, MAX_SEED),
        ("nakagami_m", keys.nakagami_m, 0.5, 1e3),
        ("nakagami_walk", keys.nakagami_walk, 0.0, 10.0),
        ("sigma", keys.sigma, 0.0, MOST_SIGMA),
        ("snr_db", keys.snr_db, -200.0, 200.0),
        ("packet", keys.packet, MIN_PACKET_BYTES, MAX_PACKET_BYTES),
        ("coherence_tokens", keys.coherence_tokens, 1, MAX_COHERENCE_TOKENS),
    ):
        if value is not None and not least <= value <= most:
            raise ConfigError(f"{where}.{key}: {value} is outside {least:g} to {most:g}")
    drawn = {
        "loss": keys.loss != 0.0,
        "nakagami_m": keys.nakagami_m is not None,
        "nakagami_walk": keys.nakagami_walk != 0.0,
        "equalised": keys.equalised,
        "sigma": keys.sigma != 0.0,
        "snr_db": keys.snr_db is not None,
    }
    given = [key for key, is_given in drawn.items() if is_given]
    if keys.channel and given:
        raise ConfigError(f"{where}.{given[0]}: the trace of `channel` says so already; leave one of them out")
    if keys.nakagami_m is not None and keys.loss:
        raise ConfigError(f"{where}.loss: it follows from nakagami_m; leave one of them out")
    if keys.nakagami_m is None and (keys.nakagami_walk or keys.equalised):
        key = "nakagami_walk" if keys.nakagami_walk else "equalised"
        raise ConfigError(f"{where}.{key}: there is no fading without nakagami_m")
    if keys.nakagami_walk and keys.nakagami_m is not None and keys.nakagami_m > 3.0:
        raise ConfigError(f"{where}.nakagami_m: {keys.nakagami_m} is beyond 3, where a walk stays")
    if keys.sigma and keys.snr_db is not None:
        raise ConfigError(f"{where}.snr_db: the noise is given by sigma already; leave one of them out")


def describe_channel(channel: Channel) -> str:
    """In a few words, for a person who starts a server with it."""
    states = channel.states
    losses = [state.loss for state in states]
    text = f"loss {min(losses):.3g}" if len(set(losses)) == 1 else f"loss {min(losses):.3g} to {max(losses):.3g}"
    sigmas = sorted({state.sigma for state in states})
    if sigmas != [0.0]:
        text += f", sigma {sigmas[0]:.3g}" + (f" to {sigmas[-1]:.3g}" if len(sigmas) > 1 else "")
    ratios = [state.snr_db for state in states if state.snr_db is not None]
    if ratios and math.isfinite(sum(ratios)):
        text += f", SNR {sum(ratios) / len(ratios):.3g} dB on average"
    return f"{text}, {channel.granularity}s, {channel.concealment}"
