"""What a receiver puts in place of what was lost, given what came: one function over runs of tokens.

Without a calibration of the boundary `mean` and `lmmse` cannot be had, and what came is rescaled instead.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from agent.compute import kernels
from agent.compute.calibration import Calibration
from planner.channel import ChannelState, Concealment

Float32 = NDArray[np.float32]
Mask = NDArray[np.bool_]


def possible(concealment: Concealment, calibration: Calibration | None) -> Concealment:
    """The concealment itself, or the best one that needs no calibration."""
    return "rescale" if calibration is None and concealment in ("mean", "lmmse") else concealment


def conceal(
    hidden: Float32,
    lost: Mask,
    concealment: Concealment,
    state: ChannelState,
    *,
    survival: Float32 | float = 1.0,
    calibration: Calibration | None = None,
    before: Float32 | None = None,
) -> None:
    """Conceal the `lost` elements of hidden states [tokens, H] that came over a channel in `state`, in place.

    `survival` is the probability of each element to come, for rescaling; `before` is the token before the first,
    as it was after concealment, [H] or None.
    """
    match possible(concealment, calibration):
        case "zero":
            hidden[lost] = 0.0
        case "rescale":
            with np.errstate(all="ignore"):
                hidden *= np.float32(1.0) / np.maximum(np.float32(survival), np.float32(1e-9))
            hidden[lost] = 0.0
        case "previous":
            _repeat(hidden, lost, _usual(hidden.shape[1], state, calibration) if before is None else before)
        case "mean":
            assert calibration is not None
            np.copyto(hidden, np.float32(state.gain) * calibration.mean, where=lost)
        case "lmmse":
            assert calibration is not None
            # What came is h y + w: its mean is h times the mean, and in units of y the noise is w/h.
            known = calibration.knowledge(_noise(state, calibration))
            kernels.conceal(hidden, lost, np.float32(state.gain) * calibration.mean, *known)


def _noise(state: ChannelState, calibration: Calibration) -> float:
    """Variance of the noise in units of what was sent: what a receiver knows of it without having seen the token."""
    if state.snr_db is not None:
        return float(calibration.power / 10.0 ** (state.snr_db / 10.0))
    if state.sigma == 0.0:
        return 0.0
    with np.errstate(divide="ignore", over="ignore"):
        return float(np.minimum(np.square(np.float64(state.sigma) / state.gain), 1e300))


def _usual(size: int, state: ChannelState, calibration: Calibration | None) -> Float32:
    if calibration is None:
        return np.zeros(size, np.float32)
    usual: Float32 = np.float32(state.gain) * calibration.mean
    return usual


def _repeat(hidden: Float32, lost: Mask, before: Float32) -> None:
    """Every lost element becomes what it was when it last came."""
    token = np.arange(1, len(hidden) + 1)[:, None]
    last = np.maximum.accumulate(np.where(lost, 0, token), axis=0)
    hidden[...] = np.take_along_axis(np.concatenate([before[None], hidden]), last, axis=0)
