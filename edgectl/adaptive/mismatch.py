"""In what an emulated link differs from the channel that a quality table was measured over, in words. Pure.

A table tells gains of the channel it is about; of another one it tells something that looks like them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from planner.channel import Channel
from rl.quality import QualityTable

SLACK = 0.01
"""Of loss and, times the table's largest, of sigma: how far beyond its ends a table still is about a channel."""


def differences(table: QualityTable, channel: Channel) -> list[str]:
    """One entry per property: as measured, and as the link has it; none where the table is about this channel."""
    return [f"{name} {theirs} (measured) and {ours} (link)" for name, theirs, ours in _differing(table, channel)]


def _differing(table: QualityTable, channel: Channel) -> Iterator[tuple[str, str, str]]:
    measured, states = table.records[0], channel.states
    if measured.granularity != channel.granularity:
        yield "granularity", measured.granularity, channel.granularity
    if measured.mitigation != channel.concealment:
        # What a device knows of the model is not known here.
        falls_back = (measured.mitigation, channel.concealment) == ("rescale", "lmmse")
        concealed = f"{channel.concealment}, unless the receiving device has no calibration" if falls_back else None
        yield "concealment", measured.mitigation, concealed or channel.concealment
    if channel.protection != "none":
        yield "protection", "none", channel.protection
    if channel.interleaved and channel.granularity == "packet":
        yield "interleaving", "none", "packets"
    has_gains = any(state.m is not None or state.gain != 1.0 for state in states)
    if has_gains != (measured.m is not None):
        yield "fading", *(("none", "drawn gains") if has_gains else ("drawn gains", "none"))
    if any(state.snr_db is not None for state in states) != (measured.snr_db is not None):
        yield "noise", *(("sigma", "SNR") if measured.snr_db is None else ("SNR", "sigma"))
    else:
        yield from _beyond("sigma", table.sigmas, [state.sigma for state in states], SLACK * table.sigmas[-1])
    yield from _beyond("loss", table.losses, [state.loss for state in states], SLACK)


def _beyond(name: str, known: Sequence[float], found: Sequence[float], slack: float) -> Iterator[tuple[str, str, str]]:
    """A link that goes beyond the ends of what was measured, where a table says what it says at its end."""
    if min(found) < known[0] - slack or max(found) > known[-1] + slack:
        yield name, _range(known[0], known[-1]), _range(min(found), max(found))


def _range(least: float, most: float) -> str:
    return f"{least:.3g}" if least == most else f"{least:.3g} to {most:.3g}"
