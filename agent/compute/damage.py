"""What an emulated channel does to hidden states, with the kernels that serving and evaluation share.

Everything is a function of (channel, layer boundary, position, element) alone, so an experiment repeats exactly
whatever the cut, the batch and the chunks.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from agent.compute import kernels
from planner.channel import Channel


def damage(hidden: NDArray[np.float32], channel: Channel, layer: int, position: int) -> None:
    """Damage hidden states [tokens, H] of one session in place; the first token is at `position`, `layer` layers have
    been passed."""
    for token in range(len(hidden)):
        state = channel.state_at(position + token)
        kernels.erase(hidden[token : token + 1], state.loss, channel.seed, layer, position + token)
