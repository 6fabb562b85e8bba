"""One job on one executor: unpack, run the layers, then pack for the next stage or sample. Joins wire and compute.

An emulated lossy link damages what has been unpacked (`agent.compute.damage`), as a function of (seed, layers passed,
position in the session, element) alone: neither of the chunk a token came in nor of who else is in the batch.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from agent.compute import kernels
from agent.compute.executor import Executor
from agent.compute.receiver import Receiver
from agent.compute.sampling import sample
from agent.effects import Job, Outcome
from agent.wire.codec import CODEC_IDS, Answered, CodecId
from planner.types import Codec

CODEC_NAMES: dict[CodecId, Codec] = {number: name for name, number in CODEC_IDS.items()}


def run(job: Job, executor: Executor, clock: Callable[[], float], receiver: Receiver | None = None) -> Outcome:
    """Carry a job out. Raises ValueError when the executor refuses it: nothing has been computed then.

    `receiver` is what this device mends damage with, the same for all jobs of a model.
    """
    started_s = clock()
    saturated = executor.saturated()
    hidden = _hidden_states(job, executor, receiver or Receiver())
    every_slot_active = len(job.active) == len(job.positions)
    if not every_slot_active:
        covering = np.zeros((len(job.positions), *hidden.shape[1:]), np.float32)
        covering[list(job.active)] = hidden
        hidden = covering
    hidden = executor.forward(job.layers, hidden, job.first_slot, job.positions)
    if not every_slot_active:
        hidden = hidden[list(job.active)]
    if job.outgoing is CodecId.NONE:
        answers = _answers(job, executor, hidden) if job.sample else ()
        return Outcome(
            answers=answers,
            started_s=started_s,
            finished_s=clock(),
            saturated=executor.saturated() - saturated,
        )
    rows, tokens, size = hidden.shape
    return Outcome(
        payload=kernels.pack(hidden, CODEC_NAMES[job.outgoing]).data,
        shape=(rows, tokens, size),
        started_s=started_s,
        finished_s=clock(),
        saturated=executor.saturated() - saturated,
    )


def _hidden_states(job: Job, executor: Executor, receiver: Receiver) -> NDArray[np.float32]:
    if job.tokens:
        return executor.embed(np.array(job.tokens, np.int64))
    codec = CODEC_NAMES[job.codec]
    hidden = kernels.unpack(job.payload, codec, job.shape)
    if job.channel is not None:
        for ref, active, row in zip(job.rows, job.active, hidden, strict=True):
            slot = job.first_slot + active
            receiver.damage(row, job.channel, job.layers.start, ref.position, codec=codec, slot=slot)
    return hidden


def _answers(job: Job, executor: Executor, hidden: NDArray[np.float32]) -> tuple[Answered, ...]:
    """Sample one token per row from its last position; the draw is keyed by the position of the new token."""
    logits = executor.logits(hidden[:, -1])
    answers = []
    for ref, chooser, row in zip(job.rows, job.choosers, logits, strict=True):
        chosen = sample(row, chooser.sampling, ref.position + job.shape[1], chooser.generated)
        answers.append(Answered(chosen.token, chosen.logprob, chosen.top))
    return tuple(answers)
