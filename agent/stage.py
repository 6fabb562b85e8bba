"""The deterministic core of a worker: events and the time in, effects out. Pure; joins wire and compute.

Rules
1. No sockets, no clock, no randomness, no tensors' contents. The same calls give the same effects.
2. A frame is checked whole before anything changes. A frame that breaks a rule is counted, refused on the connection
   it came from, and not used.
3. A refusal travels back along the route, stage by stage, to the source, which fails the sessions of that micro-batch.
   Somebody who is not the predecessor can only make himself refused.
4. A broken micro-batch stays broken until the coordinator opens it again under a new epoch.
5. The source never waits for the coordinator: with an answer's token the next step is ready to go.
6. Nothing is queued for the executor. Whoever is free asks for the next job, and only then it is chosen
   (`schedule`) and made: rows that have become ready meanwhile go with it.
"""

from __future__ import annotations

from agent import moves
from agent.compute.kernels import crc32c
from agent.device.telemetry import TelemetryRecorder
from agent.effects import Effect, Emit, Hands, Job, Notify, Outcome, Reply, Send
from agent.errors import AgentError, AnswerTimeout, FrameRefused, RefusalReason, UnknownMicroBatch
from agent.micro_batch import MicroBatch, refusal_of
from agent.neighbours import Neighbours
from agent.place import ModelShape, SlotRanges, place_of
from agent.schedule import Schedule
from agent.sessions import SessionState
from agent.token_loop import TokenLoop
from agent.wire import codec
from agent.wire.codec import Buffer, Frame, FrameKind
from agent.wire.hop import Verdict
from agent.wire.messages import (
    COORDINATOR_SILENCE_S,
    Failed,
    MicroBatchClosed,
    MicroBatchOpened,
    OpenMicroBatch,
    OpenSession,
    SessionFailed,
)


class Stage:
    """All micro-batches of one loaded model on one device."""

    def __init__(self, device: str, shape: ModelShape, telemetry: TelemetryRecorder, now: float) -> None:
        self._device = device
        self._shape = shape
        self._telemetry = telemetry
        self._slots = SlotRanges(shape.slots)
        self._micro_batches: dict[int, MicroBatch] = {}
        self._schedule = Schedule()
        self._neighbours = Neighbours(telemetry, now)
        self._coordinator_heard_s = now

    # --- micro-batches ---

    def open_micro_batch(self, opened: OpenMicroBatch) -> list[Effect]:
        """Reserve slots and connect to the next stage. A micro-batch that is open already is replaced."""
        effects: list[Effect] = []
        if opened.micro_batch in self._micro_batches:
            effects += self._drop(self._micro_batches[opened.micro_batch])
        try:
            place = place_of(self._device, opened, self._shape)
            first_slot = self._slots.reserve(opened.micro_batch, opened.rows)
        except AgentError as problem:
            failed = Failed("open-micro-batch", problem.code, f"{self._device}: {problem}", opened.micro_batch)
            return [*effects, Notify(failed)]
        micro_batch = MicroBatch(opened, place, self._shape, first_slot)
        self._micro_batches[opened.micro_batch] = micro_batch
        if not micro_batch.is_solo:
            effects += self._neighbours.connect(place.next.device, place.next.endpoint, place.next.key)
        return [*effects, Notify(MicroBatchOpened(opened.micro_batch, opened.epoch))]

    def close_micro_batch(self, number: int) -> list[Effect]:
        """Cancel its sessions and give its slots back. Closing one that is not open is no error."""
        micro_batch = self._micro_batches.get(number)
        effects = [] if micro_batch is None else self._drop(micro_batch)
        return [*effects, Notify(MicroBatchClosed(number))]

    def close_all(self) -> list[Effect]:
        """Before the model goes: cancel every session, leave every peer."""
        return [effect for micro_batch in list(self._micro_batches.values()) for effect in self._drop(micro_batch)]

    def _drop(self, micro_batch: MicroBatch) -> list[Effect]:
        del self._micro_batches[micro_batch.id]
        self._schedule.forget(micro_batch)
        self._slots.release(micro_batch.id)
        effects = self._cancel_all(micro_batch)
        effects += moves.give_up(micro_batch, UnknownMicroBatch(f"micro-batch {micro_batch.id} is closed"))
        peer = micro_batch.place.next.device
        if not any(other.place.next.device == peer for other in self._micro_batches.values()):
            effects += self._neighbours.leave(peer)
        return effects

    # --- sessions at the source ---

    def open_session(self, opened: OpenSession, now: float) -> list[Effect]:
        micro_batch = self._micro_batches.get(opened.micro_batch)
        try:
            if micro_batch is None or micro_batch.loop is None:
                raise UnknownMicroBatch(f"{self._device} is not the source of micro-batch {opened.micro_batch}")
            if micro_batch.broken is not None:
                raise UnknownMicroBatch(f"micro-batch {opened.micro_batch} is broken: {micro_batch.broken}")
            micro_batch.loop.open(opened, now)
        except AgentError as problem:
            return [Emit(SessionFailed(opened.session, problem.code, str(problem)))]
        return []

    def cancel_session(self, name: str) -> list[Effect]:
        """The row is free at once; an answer that is still on its way finds nobody."""
        for micro_batch in self._micro_batches.values():
            session = micro_batch.loop.session(name) if micro_batch.loop else None
            if session is not None and micro_batch.loop is not None and session.state is not SessionState.ENDED:
                events = session.end("cancelled")
                micro_batch.loop.retire(session)
                return moves.emit(events)
        return []

    def move_split(self, number: int, split: int, now: float) -> list[Effect]:
        """Begin to let the source's part of a route end elsewhere. What becomes of it is told in the end."""
        return moves.begin(self._device, self._micro_batches.get(number), number, split, now)

    def resume_events(self, name: str, index: int) -> list[Effect]:
        found = [
            # It may have failed on a micro-batch that broke, and have been opened on another one since.
            (session.has_ended, micro_batch.broken is not None, micro_batch.id, session)
            for micro_batch in self._micro_batches.values()
            if micro_batch.loop is not None and (session := micro_batch.loop.session(name)) is not None
        ]
        if not found:
            return [Emit(SessionFailed(name, "unknown_session", f"{self._device} has no session {name}"))]
        return moves.emit(list(min(found)[-1].events_from(index)))

    def coordinator_heard(self, now: float) -> None:
        self._coordinator_heard_s = now

    def _cancel_all(self, micro_batch: MicroBatch) -> list[Effect]:
        effects: list[Effect] = []
        if micro_batch.loop is not None:
            for session in micro_batch.loop.running():
                effects += moves.emit(session.end("cancelled"))
                micro_batch.loop.retire(session)
        return effects

    # --- frames ---

    def on_parts(self, origin: bytes, device: str, parts: list[Buffer], now: float) -> list[Effect]:
        """A data message arrived from `device` on the connection `origin`."""
        try:
            frame = codec.decode(parts, crc32c)
        except FrameRefused as refused:
            # Nothing of the header can be trusted, so the refusal names no micro-batch: epoch 0.
            return self._refuse(origin, Frame(FrameKind.REFUSAL, 0, 0, 0), refused)
        return self.on_frame(origin, device, frame, now)

    def on_frame(self, origin: bytes, device: str, frame: Frame, now: float) -> list[Effect]:
        try:
            match frame.kind:
                case FrameKind.PREFILL | FrameKind.DECODE | FrameKind.GIVE | FrameKind.TAKE:
                    return self._on_work(origin, device, frame, now)
                case FrameKind.HANDED:
                    # Stages between pass it on; at the source it is an answer.
                    if self._find(frame).loop is None:
                        return self._on_work(origin, device, frame, now)
                    return self._on_answer(device, frame, now)
                case FrameKind.ANSWER:
                    return self._on_answer(device, frame, now)
                case FrameKind.PING | FrameKind.PROBE:
                    return [Reply(origin, Frame(FrameKind.PONG, 0, 0, 0, sent_ns=frame.sent_ns))]
            raise FrameRefused(RefusalReason.HEADER, f"{frame.kind.name} is a reply, not a request")
        except FrameRefused as refused:
            return self._refuse(origin, frame, refused)

    def _on_work(self, origin: bytes, device: str, frame: Frame, now: float) -> list[Effect]:
        micro_batch = self._find(frame)
        if micro_batch.incoming is None or device != micro_batch.place.previous.device:
            raise FrameRefused(RefusalReason.PEER, f"{device} is not the stage before {self._device}")
        micro_batch.previous_origin = origin
        if micro_batch.accept(frame, now) is Verdict.DUPLICATE:
            self._telemetry.add("duplicates_dropped")
            # The frame was sent again because a connection broke. If this is the last stage its answer may be lost too.
            kept = micro_batch.outgoing.find(frame.step) if micro_batch.place.is_last else None
            return [] if kept is None else [Send(micro_batch.place.next.device, kept)]
        micro_batch.queue.append(micro_batch.job_for_frame(frame, now))
        return []

    def _on_answer(self, device: str, frame: Frame, now: float) -> list[Effect]:
        micro_batch = self._find(frame)
        loop = micro_batch.loop
        if loop is None or micro_batch.answers is None or device != micro_batch.place.previous.device:
            raise FrameRefused(RefusalReason.PEER, f"{device} does not answer to {self._device}")
        if frame.kind is FrameKind.HANDED:
            return self._on_handed(micro_batch, frame, now)
        answers = codec.decode_answers(frame.payload)
        if loop.is_in_flight(frame.step) and len(answers) != loop.rows_in_flight(frame.step):
            raise FrameRefused(RefusalReason.ROW, f"{len(answers)} answers to {loop.rows_in_flight(frame.step)} rows")
        if micro_batch.answers.accept(frame, now) is Verdict.DUPLICATE:
            self._telemetry.add("duplicates_dropped")
            return []
        if loop.kind(frame.step) is FrameKind.DECODE:
            in_wires_s = now - micro_batch.sent_s[frame.step] - frame.held_us / 1e6
            self._telemetry.observe("decode_wire_seconds", max(0.0, in_wires_s))
        return self._answered(micro_batch, frame.step, answers, now)

    def _on_handed(self, micro_batch: MicroBatch, frame: Frame, now: float) -> list[Effect]:
        assert micro_batch.answers is not None
        if micro_batch.answers.accept(frame, now) is Verdict.DUPLICATE:
            self._telemetry.add("duplicates_dropped")
            return []
        moves.timed(micro_batch, frame, now)
        return self._answered(micro_batch, frame.step, (), now) + moves.handed(micro_batch, frame, now)

    def _answered(
        self, micro_batch: MicroBatch, step: int, answers: tuple[codec.Answered, ...], now: float
    ) -> list[Effect]:
        loop = micro_batch.loop
        assert loop is not None
        micro_batch.sent_s.pop(step, None)
        if loop.kind(step) is FrameKind.DECODE:
            self._telemetry.observe("decode_step_seconds", now - loop.since_s(step))
            self._schedule.has_answered(micro_batch, self._micro_batches.values(), now - loop.since_s(step), now)
        sent_s = loop.sent_s(step)
        events = loop.answer(step, answers, now)
        for other in self._sources():
            other.has_heard(sent_s, now)
        return moves.emit([*events, *loop.news(now)])

    def _sources(self) -> list[TokenLoop]:
        """Of all micro-batches that begin here and work."""
        return [m.loop for m in self._micro_batches.values() if m.loop is not None and m.broken is None]

    def _find(self, frame: Frame) -> MicroBatch:
        micro_batch = self._micro_batches.get(frame.micro_batch)
        if micro_batch is None:
            raise FrameRefused(RefusalReason.MICRO_BATCH, f"no micro-batch {frame.micro_batch} is open here")
        if frame.epoch != micro_batch.epoch:
            raise FrameRefused(RefusalReason.EPOCH, f"epoch {frame.epoch}, current is {micro_batch.epoch}")
        if micro_batch.broken is not None:
            raise FrameRefused(RefusalReason.MICRO_BATCH, f"micro-batch is broken: {micro_batch.broken}")
        return micro_batch

    # --- jobs ---

    def has_job(self, now: float) -> bool:
        """Something can be run now."""
        return self._schedule.choose(self._micro_batches.values(), now) is not None

    def next_job(self, now: float) -> Job | None:
        """What to run next, chosen among all micro-batches; None while everything waits for something."""
        choice = self._schedule.choose(self._micro_batches.values(), now)
        return None if choice is None else self._schedule.take(self._micro_batches, choice, now)

    def on_computed(self, job: Job, outcome: Outcome, now: float) -> list[Effect]:
        """The worker has run a job."""
        if job.hands is not None:
            return self._on_hands(job, outcome, now)
        compute_s, wait_s = outcome.finished_s - outcome.started_s, max(0.0, outcome.started_s - job.arrived_s)
        if job.kind is FrameKind.DECODE:
            self._telemetry.observe("decode_compute_seconds", compute_s)
            self._telemetry.observe("decode_wait_seconds", wait_s)
        else:
            self._telemetry.observe("prefill_compute_seconds", compute_s)
            self._telemetry.observe("prefill_wait_seconds", wait_s)
        self._telemetry.add("residual_saturated", outcome.saturated)
        micro_batch = self._micro_batch_of(job)
        if micro_batch is None:
            self._schedule.has_failed()
            return []
        self._schedule.has_run(job, compute_s, outcome.finished_s)
        for chooser, answer in zip(job.choosers, outcome.answers, strict=True):
            chooser.generated[answer.token] += 1
            self._telemetry.add("tokens_sampled")
        if micro_batch.is_solo:
            return self._answered(micro_batch, job.step, outcome.answers, now)
        frame = micro_batch.frame_after(job, outcome, now)
        micro_batch.outgoing.keep(frame, now)
        if job.kind is FrameKind.DECODE and not micro_batch.place.is_source:
            self._telemetry.observe("decode_held_seconds", now - job.arrived_s)
        effects: list[Effect] = [Send(micro_batch.place.next.device, frame)]
        if micro_batch.loop is not None:
            micro_batch.sent_s[job.step] = now
            effects += moves.emit(micro_batch.loop.news(now))
        return effects

    def _on_hands(self, job: Job, outcome: Outcome, now: float) -> list[Effect]:
        """Keys and values have been read, written, or are to be passed on."""
        micro_batch = self._micro_batch_of(job)
        if micro_batch is None:
            return []
        if micro_batch.loop is not None and outcome.refused and job.hands is Hands.READ:
            return self._break(micro_batch, job.step, refusal_of(outcome))
        if micro_batch.loop is not None and job.hands is Hands.WRITE:
            return moves.written(self._device, micro_batch, outcome, now)
        if micro_batch.incoming is not None and job.hands is Hands.WRITE and not outcome.refused:
            micro_batch.incoming.given(job.rows, job.layers, job.shape[1])
        frame = micro_batch.frame_after(job, outcome, now)
        micro_batch.outgoing.keep(frame, now)
        if micro_batch.loop is not None:
            micro_batch.sent_s[job.step] = now
        return [Send(micro_batch.place.next.device, frame)]

    def on_compute_failed(self, job: Job, problem: Exception) -> list[Effect]:
        """The executor refused or failed a job: as if the frame had been refused."""
        detail = str(problem)[: codec.MAX_DETAIL]  # A runtime's errors may be long, and travel from here on.
        refused = FrameRefused(RefusalReason.COMPUTE, f"{self._device}, layers {job.layers}: {detail}")
        self._telemetry.refused(refused.reason)
        self._schedule.has_failed()
        micro_batch = self._micro_batch_of(job)
        return [] if micro_batch is None else self._break(micro_batch, job.step, refused)

    def _micro_batch_of(self, job: Job) -> MicroBatch | None:
        """Unless it was closed, replaced or broken since."""
        micro_batch = self._micro_batches.get(job.micro_batch)
        return micro_batch if micro_batch and micro_batch.epoch == job.epoch and micro_batch.broken is None else None

    # --- refusals and reconnects ---

    def on_replied(self, peer: str, parts: list[Buffer], now: float) -> list[Effect]:
        """Something came back from the next stage: a pong, or a refusal of a frame of ours."""
        try:
            frame = codec.decode(parts, crc32c)
        except FrameRefused as refused:
            self._telemetry.refused(refused.reason)
            return []
        if frame.kind is FrameKind.PONG:
            self._neighbours.on_pong(peer, frame.sent_ns, now)
            return []
        if frame.kind is not FrameKind.REFUSAL:
            self._telemetry.refused(RefusalReason.HEADER)
            return []
        cause = codec.decode_refusal(frame.payload)
        effects: list[Effect] = []
        for micro_batch in list(self._micro_batches.values()):
            named = (micro_batch.id, micro_batch.epoch) == (frame.micro_batch, frame.epoch)
            # A peer that could not read the header cannot say whose frame it was: all that are under way to it.
            unnamed = frame.epoch == 0 and bool(micro_batch.outgoing.unanswered())
            if micro_batch.place.next.device == peer and (named or unnamed) and micro_batch.broken is None:
                effects += self._break(micro_batch, frame.step, cause)
        return effects

    def _refuse(self, origin: bytes, frame: Frame, refused: FrameRefused) -> list[Effect]:
        self._telemetry.refused(refused.reason)
        # The source reports it, so it has to say where it happened.
        payload = codec.encode_refusal(FrameRefused(refused.reason, f"{self._device}: {refused.detail}"))
        return [
            Reply(origin, Frame(FrameKind.REFUSAL, frame.micro_batch, frame.epoch, frame.step, payload=payload)),
        ]

    def _break(self, micro_batch: MicroBatch, step: int, problem: AgentError) -> list[Effect]:
        """Rule 3: pass a refusal on towards the source; at the source, fail the sessions."""
        micro_batch.broken = str(problem)
        micro_batch.queue.clear()
        if micro_batch.loop is None:
            if micro_batch.previous_origin is None or not isinstance(problem, FrameRefused):
                return []
            payload = codec.encode_refusal(problem)
            frame = Frame(FrameKind.REFUSAL, micro_batch.id, micro_batch.epoch, step, payload=payload)
            return [Reply(micro_batch.previous_origin, frame)]
        effects: list[Effect] = []
        for session in micro_batch.loop.running():
            effects += moves.emit(session.fail(problem.code, str(problem)))
            micro_batch.loop.retire(session)
        effects += moves.give_up(micro_batch, problem)
        return [*effects, Notify(Failed("micro-batch", problem.code, f"{self._device}: {problem}", micro_batch.id))]

    def on_connected(self, peer: str) -> list[Effect]:
        """A connection to the next stage stands (again): what it may have missed goes again, in order."""
        effects: list[Effect] = []
        for micro_batch in self._micro_batches.values():
            if micro_batch.place.next.device == peer and micro_batch.broken is None:
                effects += [Send(peer, frame) for frame in micro_batch.outgoing.unanswered()]
        return effects

    # --- time ---

    def tick(self, now: float) -> list[Effect]:
        """Deadlines and pings; to be called about every quarter of a second, and never from a socket event."""
        effects: list[Effect] = []
        silent_s = now - self._coordinator_heard_s
        under_way = [frame for loop in self._sources() for frame in loop.under_way()]
        for micro_batch in self._micro_batches.values():
            if micro_batch.loop is None or micro_batch.broken is not None:
                continue
            if silent_s > COORDINATOR_SILENCE_S:
                effects += self._cancel_all(micro_batch)
            try:
                micro_batch.loop.expire(now, under_way)
            except AnswerTimeout as late:
                hop = f"{self._device} → {micro_batch.place.next.device}"
                effects += self._break(micro_batch, 0, AnswerTimeout(f"{hop}: {late}"))
            effects += moves.on_time(micro_batch, now)
        # A ping behind hidden states would measure the peer's computing, not the hop.
        busy = {m.place.next.device for m in self._micro_batches.values() if m.sent_s}
        return effects + self._neighbours.ping(busy, now)
