"""One job on keys and values: read them from an executor's pool, or write them there. Joins wire and compute.

On the wire they are, row by row, [layers, 2 (keys, values), kv heads, tokens, head size] of the pool's elements.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.compute.executor import Executor
from agent.effects import Hands, Job, Outcome
from agent.wire.codec import CODEC_IDS, CodecId

TYPES: dict[CodecId, type[np.floating[Any]]] = {CodecId.FP32: np.float32, CodecId.FP16: np.float16}


def run(job: Job, executor: Executor, clock: Callable[[], float]) -> Outcome:
    """Carry a job out. What this device cannot do is an outcome and says why: it costs the move and no session."""
    started_s = clock()
    if job.hands is Hands.PASS:
        return Outcome(job.payload, job.shape, started_s=started_s, finished_s=clock(), codec=job.codec)
    own = CODEC_IDS[executor.kv_type]
    try:
        if job.codec is not own:
            raise ValueError(f"keys and values are {job.codec.name.lower()}, those of this device {executor.kv_type}")
        if job.hands is Hands.READ:
            payload = np.concatenate([part.reshape(-1) for part in _read(job, executor)])
            return Outcome(payload.data.cast("B"), job.shape, started_s=started_s, finished_s=clock(), codec=own)
        _write(job, executor)
    except ValueError as problem:
        return Outcome(started_s=started_s, finished_s=clock(), refused=str(problem) or type(problem).__name__)
    return Outcome(started_s=started_s, finished_s=clock())


def _read(job: Job, executor: Executor) -> list[NDArray[Any]]:
    return [
        executor.read_kv(job.layers, job.first_slot + ref.row, ref.position, ref.position + job.shape[1])
        for ref in job.rows
    ]


def _write(job: Job, executor: Executor) -> None:
    rows, tokens, elements = job.shape
    values = np.frombuffer(job.payload, TYPES[job.codec])
    spec = executor.spec
    shape = (rows, len(job.layers), 2, spec.num_kv_heads, tokens, spec.head_dim)
    if values.size != rows * tokens * elements or values.size != np.prod(shape):
        raise ValueError(f"{values.size} elements of keys and values, {shape} expected")
    for index in job.active:
        ref = job.rows[index]
        executor.write_kv(job.layers, job.first_slot + ref.row, ref.position, values.reshape(shape)[index])
