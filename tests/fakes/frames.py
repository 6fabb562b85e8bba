"""Frames of hidden states without hidden states, for what looks at headers only."""

from __future__ import annotations

from agent.wire.codec import CodecId, Frame, FrameKind, RowRef
from agent.wire.messages import Opening, Sampling

EPOCH = 7
HIDDEN = 4


def frame(step: int, *rows: tuple[int, int, int], tokens: int = 1, opens: bool = False, answered: int = -2) -> Frame:
    """Of micro-batch 1 at layer 8, `rows` as (row, generation, position); a prefill chunk where there are more tokens.

    `answered` is 1 + the highest step whose answer the source has; by default that of the step two before.
    """
    refs = tuple(RowRef(*row) for row in rows)
    return Frame(
        FrameKind.DECODE if tokens == 1 else FrameKind.PREFILL,
        micro_batch=1,
        epoch=EPOCH,
        step=step,
        rows=refs,
        start_layer=8,
        codec=CodecId.FP16,
        shape=(len(refs), tokens, HIDDEN),
        answered=step - 1 if answered == -2 else answered,
        openings=tuple(Opening(ref.row, ref.generation, Sampling()) for ref in refs) if opens else (),
    )
