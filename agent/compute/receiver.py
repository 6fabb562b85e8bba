"""Where hidden states arrive over an emulated channel: what this device knows of the model, and of each slot's last
token.

Owns all that damage needs beside the hidden states themselves. It is kept by slot of the KV pool, because a slot is one
session's for as long as the session lasts.
"""

from __future__ import annotations

import logging
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from agent.compute.calibration import Calibration, Calibrations
from agent.compute.concealment import possible
from agent.compute.damage import damage
from agent.errors import BadCheckpoint
from planner.channel import Channel
from planner.types import Codec

logger = logging.getLogger(__name__)

Float32 = NDArray[np.float32]


class _Last(NamedTuple):
    """The token that a slot had last."""

    layer: int
    position: int
    hidden: Float32


class Receiver:
    """What one device receives with."""

    def __init__(self, calibrations: Calibrations | None = None) -> None:
        """Without calibrations of the model nothing is protected, and concealments that need one rescale."""
        self._calibrations = calibrations
        self._last: dict[int, _Last] = {}
        self._told: set[int] = set()
        """Boundaries without a calibration that the log has heard of."""

    def damage(
        self, hidden: Float32, channel: Channel, layer: int, position: int, *, codec: Codec, slot: int = 0
    ) -> None:
        """As `damage.damage`, of the session in `slot`. A token that this slot did not have just before, at the same
        boundary, is none that "previous" can repeat."""
        calibration = self._calibration(channel, layer)
        last = self._last.get(slot) if channel.concealment == "previous" else None
        before = last.hidden if last is not None and (last.layer, last.position) == (layer, position - 1) else None
        damage(hidden, channel, layer, position, codec=codec, calibration=calibration, before=before)
        if channel.concealment == "previous" and len(hidden):
            self._last[slot] = _Last(layer, position + len(hidden) - 1, hidden[-1].copy())

    def _calibration(self, channel: Channel, layer: int) -> Calibration | None:
        if channel.concealment in ("zero", "rescale") and channel.protection == "none":
            return None
        problem = ""
        try:
            found = None if self._calibrations is None or layer in self._told else self._calibrations.at(layer)
        except BadCheckpoint as bad:  # It is read at its first use; sessions go on as if it was not there.
            found, problem = None, str(bad)
        if found is None and layer not in self._told:
            self._told.add(layer)
            instead = possible(channel.concealment, None)
            logger.warning(
                "not_calibrated",
                extra={
                    "layer": layer,
                    "concealment": instead,
                    "wanted": channel.concealment,
                    "protection": channel.protection,
                    "problem": problem,
                },
            )
        return found
