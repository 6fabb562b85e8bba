"""The Executor protocol: what the agent needs from whatever computes layers.

`onnx_executor` computes them, `emulated_executor` takes the profiled time, `tests/fakes/fake_executor` does integer
arithmetic. An executor knows nothing of sockets, sessions, micro-batches or the clock. It is driven by one thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from planner.model_spec import ModelSpec
from planner.types import LayerRange

Float32 = NDArray[np.float32]
KvArray = NDArray[Any]
"""Keys and values of one slot: [layers, 2, kv heads, tokens, head size], in the element type of the pool."""
IDLE = -(1 << 31)
"""A position that says: this slot is not in the run. No mistake in arithmetic comes to it."""


class Executor(Protocol):
    """Resident blocks of one model on one device, with a KV pool of `slots` slots of `context` positions each.

    Shapes: n rows, s tokens per row, H hidden size, V vocabulary.
    """

    spec: ModelSpec
    resident: tuple[LayerRange, ...]
    slots: int
    context: int
    kv_type: Literal["fp32", "fp16"]
    """Of the elements of the KV pool."""

    def embed(self, tokens: NDArray[np.int64]) -> Float32:
        """Token ids [n, s] to hidden states [n, s, H]. Only where layer 0 is resident."""

    def forward(self, layers: LayerRange, hidden: Float32, slot: int, positions: Sequence[int]) -> Float32:
        """Run `layers` over hidden states [n, s, H] of the slots `slot .. slot + n - 1`; returns [n, s, H].

        `positions[r]` is the number of tokens slot `slot + r` holds before this run; a smaller number than at the
        last run rewinds the slot. A slot at position IDLE stays as it is, and what comes out for it means nothing.
        n > 1 needs s == 1. After every layer the residual is rounded to the boundary type.
        The result is valid until the next call. Raises ValueError when a range, slot or position is out of bounds:
        nothing has been computed then.
        """

    def logits(self, hidden: Float32) -> Float32:
        """Final norm and head: [n, H] to [n, V]. Only where the last layer is resident."""

    def read_kv(self, layers: LayerRange, slot: int, start: int, stop: int) -> KvArray:
        """A copy of the keys and values of the tokens `start .. stop - 1` of a slot. Raises ValueError where a layer is
        not resident or does not hold them."""

    def write_kv(self, layers: LayerRange, slot: int, start: int, values: KvArray) -> None:
        """Put keys and values where `read_kv` found them on another device: bit by bit as if the slot's tokens had been
        run here. Raises ValueError, having changed nothing, for another shape or type, a layer that is not resident, or
        one that holds fewer than `start` tokens."""

    def saturated(self) -> int:
        """Number of residual elements clipped to the boundary type's range since the executor was made."""

    def close(self) -> None:
        """Give weights and KV pool back; no other call may follow."""
