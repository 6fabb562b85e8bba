"""A session that ran over an emulated channel while its split moved, run again in this one process.

Damage depends on (channel, layers passed, position, element) alone, and keys and values of a layer are the same
wherever they were computed. So whoever knows the channel and from which position on the session was split where, its
damage schedule, gets the session's tokens again without a cluster. The jobs are the devices', run by the same code.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from agent import step
from agent.compute.executor import Executor
from agent.compute.receiver import Receiver
from agent.effects import Job, Outcome, RowSampling
from agent.wire.codec import CODEC_IDS, CodecId, FrameKind, RowRef
from agent.wire.messages import Sampling
from edgectl.instructions import PREFILL_CHUNK_TOKENS
from planner.channel import Channel
from planner.types import Codec, LayerRange

if TYPE_CHECKING:
    from edgectl.model_source import LocatedModel
    from edgectl.planning import ServedModel, ServingOptions

Schedule = tuple[tuple[int, int], ...]
"""(position, split): hidden states of the tokens from this position on leave the source after so many layers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedSession:
    """What decides a session's tokens. Raises ValueError for a schedule that is none."""

    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Sampling
    schedule: Schedule
    channel: Channel | None = None
    """Of the hop behind the source."""
    codec: Codec = "fp16"
    stop_ids: tuple[int, ...] = ()
    later_cuts: tuple[int, ...] = ()
    """Layers after which the route has further hops, none of them with a channel."""

    def __post_init__(self) -> None:
        if not self.prompt or self.max_tokens < 1:
            raise ValueError(f"{len(self.prompt)} prompt tokens, {self.max_tokens} to generate: at least one of each")
        check_schedule(self.schedule)
        splits = [split for _, split in self.schedule]
        if list(self.later_cuts) != sorted(set(self.later_cuts)) or min(self.later_cuts, default=1 << 30) <= max(
            splits
        ):
            raise ValueError(f"cuts {list(self.later_cuts)} do not rise behind the splits {sorted(set(splits))}")


def check_schedule(schedule: Sequence[tuple[int, int]]) -> None:
    """Raises ValueError unless positions rise from 0 on and every split leaves the source a layer."""
    if not schedule or schedule[0][0] != 0:
        raise ValueError(f"a schedule begins at position 0, not {list(schedule[:1])}")
    for before, after in pairwise(schedule):
        if after[0] <= before[0]:
            raise ValueError(f"a schedule's positions rise: {before} is followed by {after}")
    if min(split for _, split in schedule) < 1:
        raise ValueError(f"splits {[split for _, split in schedule]}: the source has one layer at least")


def split_at(schedule: Sequence[tuple[int, int]], position: int) -> int:
    """Layers that the token at a position passed on the source."""
    return [split for start, split in schedule if start <= position][-1]


def pieces(schedule: Sequence[tuple[int, int]], start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Positions [start, stop) as (start, stop, split) with one split each."""
    edges = [*schedule[1:], (stop, 0)]
    for (begin, split), (end, _) in zip(schedule, edges, strict=True):
        if max(begin, start) < min(end, stop):
            yield max(begin, start), min(end, stop), split


def chunks(start: int, stop: int, most: int) -> Iterator[tuple[int, int]]:
    """[start, stop) in runs of at most `most` tokens, none of them of one unless there is no other."""
    while start < stop:
        end = min(start + most, stop)
        if stop - end == 1 and end - start > 2:
            end -= 1
        yield start, end
        start = end


@dataclass(frozen=True, slots=True)
class _Run:
    """Where a session is run again."""

    executor: Executor
    session: RecordedSession
    receiver: Receiver
    slot: int


def replay(
    executor: Executor, session: RecordedSession, receiver: Receiver | None = None, slot: int = 0
) -> Iterator[int]:
    """Tokens of the session as they were sampled, the one that ended it included.

    `executor` has every layer resident, and blocks that begin at every split and cut; what its slot holds is written
    over. `receiver` knows of the model what the receiving device knew; None: nothing. Raises ValueError for a split the
    executor has no cut at, CannotSample where damage left nothing to choose by.
    """
    run = _Run(executor, session, receiver or Receiver(), slot)
    chooser = RowSampling(session.sampling)
    stops = set(session.stop_ids)
    position, token = 0, -1
    for start, stop, split in pieces(session.schedule, 0, len(session.prompt)):
        for begin, end in chunks(start, stop, PREFILL_CHUNK_TOKENS):
            is_last = end == len(session.prompt)
            token = _pass(run, begin, split, session.prompt[begin:end], chooser if is_last else None)
            position = end
    for generated in range(1, session.max_tokens + 1):
        chooser.generated[token] += 1
        yield token
        if token in stops or generated == session.max_tokens or position == executor.context:
            return
        token = _pass(run, position, split_at(session.schedule, position), (token,), chooser)
        position += 1


def _pass(run: _Run, position: int, split: int, tokens: Sequence[int], chooser: RowSampling | None) -> int:
    """Tokens from a position on through all stages; what was sampled, -1 without a chooser."""
    session, layers = run.session, run.executor.spec.num_layers
    outcome = Outcome()
    for number, (start, stop) in enumerate(pairwise([0, split, *session.later_cuts, layers])):
        is_last = stop == layers
        job = Job(
            kind=FrameKind.PREFILL if position < len(session.prompt) else FrameKind.DECODE,
            micro_batch=0,
            epoch=0,
            step=0,
            rows=(RowRef(0, 0, position),),
            sample=is_last and chooser is not None,
            layers=LayerRange(start, stop),
            first_slot=run.slot,
            positions=(position,),
            active=(0,),
            tokens=(tuple(tokens),) if number == 0 else (),
            payload=outcome.payload,
            codec=CodecId.NONE if number == 0 else CODEC_IDS[session.codec],
            shape=outcome.shape if number else (1, len(tokens), run.executor.spec.hidden_size),
            outgoing=CodecId.NONE if is_last else CODEC_IDS[session.codec],
            choosers=(chooser,) if is_last and chooser is not None else (),
            channel=session.channel if number == 1 else None,
        )
        outcome = step.run(job, run.executor, time.monotonic, run.receiver)
    return outcome.answers[0].token if outcome.answers else -1


def load_receiver(located: LocatedModel, model: ServedModel) -> Receiver:
    """What a device knows that has this model here: its calibrations where there are any. Raises BadCheckpoint and
    ModelMismatch for a file that is none of this model."""
    from agent.compute.calibration import find_calibrations

    size = model.spec.hidden_size
    return Receiver(find_calibrations(located.directory.parent, located.directory.name, None, model.digest, size))


def load_all_layers(
    located: LocatedModel, options: ServingOptions, context: int, cuts: Sequence[int], threads: int = 1
) -> Executor:
    """An executor for `replay`, with the numbers a device on the CPU gets. Raises AgentError and PlannerError."""
    from agent.compute.checkpoint import Checkpoint
    from agent.compute.onnx_executor import ExecutorSettings, OnnxExecutor
    from agent.compute.onnx_session import SessionSettings

    checkpoint = Checkpoint.open(located.directory)
    settings = ExecutorSettings(
        resident=(LayerRange(0, checkpoint.spec.num_layers),),
        slots=1,
        context=context,
        quantization=options.quantization,
        block_size=options.block_size,
        boundary=options.boundary,
        session=SessionSettings(threads=threads),
        cuts=tuple(sorted(set(cuts))),
    )
    return OnnxExecutor.load(checkpoint, settings)
