"""Which job a device runs next, among all micro-batches open on it. Pure: measured times and the clock come in.

Rules
1. Within a micro-batch jobs run in step order. Across micro-batches the one that is due first runs first; nothing can
   be overtaken for longer than by what was due before it, so nothing starves.
2. A decode step is due when it arrived, or at the source when its first row became ready.
3. A chunk that arrived is due one decode round later: a round is one decode step of every micro-batch here. Whatever
   waits behind it in its own micro-batch lends it its own due time.
4. At the source, while rows decode, prefill gets about the time that decoding gets, here and so on every later stage,
   in chunks short enough that a token which meets one on every stage is late by a round at most. While none decodes,
   chunks are as long as the micro-batch allows.
5. Of two prompts the one whose first token is due first gets the chunk.
6. A slice of keys and values is due when the one before it was done: it takes next to no time here.
7. Pipelines: without bubbles a micro-batch's next step goes when its token is back. With bubbles it waits until the
   tokens of all micro-batches of its route are back; sequentially one step of the route is under way at a time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from agent.effects import Job
from agent.micro_batch import MicroBatch, RouteKey
from agent.token_loop import TokenLoop, smoothed
from agent.wire.codec import HANDING, MAX_TOKENS_PER_ROW, FrameKind

LEAST_CHUNK = 8
"""Tokens of the shortest chunk that a prompt is cut into to spare others: below, weights are streamed for too few."""
CHUNK_GRAIN = 4
"""Lengths of such chunks are multiples of this, so that few shapes of run occur."""
STRIDE = 2.0
"""From one chunk to the next such a length changes at most by this factor."""
PREFILL_SHARE = 0.9
"""Of the time that decoding gets, what prefill gets while both want it: others' tokens come at about half their rate
then, and a prompt takes about twice as long as alone."""
CHUNK_SHARE = 0.8
"""Of a round, all that a token of the others waits for chunks in it: of S stages each has S-th parts of that."""
SLOWER = 1.8
"""Where a pipeline has fewer micro-batches than stages, its stages idle in turns and a chunk may take longer than
decoding does; it grows while others' tokens take at most so many times as long as without."""
GROWTH, SHRINKAGE = 1.02, 0.8
"""After each round that did and that did not: nine of ten rounds do."""
MOST_STRETCH = 2.0
DEBT_SHARE = 0.25
"""A chunk may go while prefill has had so much of a chunk's time more than decoding: measured times scatter."""


class Choice(NamedTuple):
    """A job that could run now; the least of them is the one to run."""

    due_s: float
    micro_batch: int
    kind: FrameKind
    tokens: int = 0
    """At the source: most tokens of the chunk."""
    spared_s: float | None = None
    """At the source: seconds that the chunk may take for the sake of those who decode; None when nobody does."""
    share: float = PREFILL_SHARE
    """Of the time that decoding gets, what is prefill's."""


class Schedule:
    """What a device has learnt about its runs, and whose turn it is."""

    def __init__(self) -> None:
        self.s_per_token = 0.0
        """Seconds of a prompt's token in a chunk, 0.0 before the first one."""
        self._decode_s: dict[int, float] = {}
        """Per micro-batch, seconds of a decode step here."""
        self._chunk_tokens = 0.0
        """Length of a chunk that takes about as long as a round; 0.0 before anything is known."""
        self._debt_s = 0.0
        """Time that prefill has had beyond decoding's since rows decode."""
        self._share = PREFILL_SHARE
        self._stretch = 1.0
        """How much longer chunks may take where stages idle."""
        self._plain_round_s: dict[tuple[RouteKey, int], float] = {}
        """Per route and number of its rows that decode, seconds of a round without a chunk."""
        self._chunk_ended_s = 0.0
        self._spared_s: float | None = None
        """Of the chunk at hand."""
        self._gone: defaultdict[RouteKey, set[int]] = defaultdict(set)
        """With bubbles: per route the micro-batches whose step of this round has gone."""

    # --- choosing ---

    def choose(self, micro_batches: Iterable[MicroBatch], now: float) -> Choice | None:
        """What should run next, or None while nothing can. Changes nothing."""
        working = [micro_batch for micro_batch in micro_batches if micro_batch.broken is None]
        slack_s = sum(self._decode_s.values())
        choices = [_of_queue(micro_batch, slack_s) for micro_batch in working if micro_batch.queue]
        sources = [micro_batch for micro_batch in working if micro_batch.loop is not None]
        if sources:
            routes = _Routes(sources, self._gone)
            for micro_batch in sources:
                assert micro_batch.loop is not None
                since_s = micro_batch.loop.ready_since_s()
                if since_s is not None and routes.may_decode(micro_batch):
                    choices.append(Choice(since_s, micro_batch.id, FrameKind.DECODE))
                slice_since_s = micro_batch.loop.slice_since_s()
                if slice_since_s is not None and routes.may_prefill(micro_batch):
                    choices.append(Choice(slice_since_s, micro_batch.id, FrameKind.GIVE))
            choices += self._chunk(sources, routes, now)
        return min(choices, default=None)

    def _chunk(self, sources: list[MicroBatch], routes: _Routes, now: float) -> list[Choice]:
        """The chunk that may go from here, if any: of the prompt that is due first."""
        prompts = []
        for micro_batch in sources:
            assert micro_batch.loop is not None
            prompt = micro_batch.loop.next_prompt(self.s_per_token)
            if prompt is not None and routes.may_prefill(micro_batch):
                prompts.append((prompt.due_s(self.s_per_token), micro_batch.id, prompt.opened_s))
        if not prompts:
            return []
        _, number, opened_s = min(prompts)
        since_s = max(opened_s, self._chunk_ended_s)
        decoding = [m.id for m in sources if m.loop is not None and m.loop.wants_to_decode(now)]
        if not decoding:
            return [Choice(since_s, number, FrameKind.PREFILL, MAX_TOKENS_PER_ROW)]
        round_s = sum(self._decode_s.get(each, 0.0) for each in decoding)
        stages = next(len(m.place.stages) for m in sources if m.id == number)
        spared_s = round_s * self._share_of_round(stages, len(decoding))
        if self._debt_s > DEBT_SHARE * spared_s:
            return []
        if len(decoding) >= stages:
            # Such a chunk is a stage's part of what a round may have, and so there is one for each stage.
            since_s = max(opened_s, since_s - round_s * (1 - 1 / stages))
        share = max(PREFILL_SHARE, spared_s / round_s) if round_s else PREFILL_SHARE
        return [Choice(since_s, number, FrameKind.PREFILL, self._length(spared_s), spared_s, share)]

    def _share_of_round(self, stages: int, steps: int) -> float:
        """How long a chunk may take beside so many decode steps per round, in rounds of this device.

        A token may meet the chunk on every stage and is to be late by a round at most: on one stage a round of the
        device, on as many stages as steps one step. With fewer steps a round is the way through all stages, which
        leaves up to 2 S - m steps here, and (2 S - 1) / (S - 1) on each of the others, on devices of their own.
        """
        if steps >= stages:
            return CHUNK_SHARE / stages
        most = min(2 * stages - steps, (2 * stages - 1) / (stages - 1))
        return CHUNK_SHARE * min(self._stretch, most) / steps

    def _length(self, spared_s: float) -> int:
        tokens = self._chunk_tokens or (spared_s / self.s_per_token if self.s_per_token else 0.0)
        return max(LEAST_CHUNK, round(min(tokens, MAX_TOKENS_PER_ROW) / CHUNK_GRAIN) * CHUNK_GRAIN)

    # --- what happens ---

    def take(self, micro_batches: Mapping[int, MicroBatch], choice: Choice, now: float) -> Job:
        """The chosen job; it is under way from now on."""
        micro_batch = micro_batches[choice.micro_batch]
        if micro_batch.queue:
            return micro_batch.queue.popleft()
        loop = micro_batch.loop
        assert loop is not None
        since_s = choice.due_s
        if choice.kind in HANDING:
            return micro_batch.job_for_next(loop.take_slice(now), since_s)
        if choice.kind is FrameKind.DECODE:
            self._has_gone(micro_batch, micro_batches.values())
            frame = loop.take_decode(now, since_s)
        else:
            self._spared_s, self._share = choice.spared_s, choice.share
            session = loop.next_prompt(self.s_per_token)
            assert session is not None
            since_s = max(session.opened_s, self._chunk_ended_s)
            frame = loop.take_chunk(session, now, since_s, choice.tokens)
        return micro_batch.job_for_next(frame, since_s)

    def _has_gone(self, micro_batch: MicroBatch, others: Iterable[MicroBatch]) -> None:
        """Enter a decode step into its route's round; a new one begins where none is under way."""
        if micro_batch.pipeline != "bubbles":
            return
        if _Routes(others, self._gone).is_round_over(micro_batch.route):
            self._gone[micro_batch.route].clear()
        self._gone[micro_batch.route].add(micro_batch.id)

    def has_run(self, job: Job, compute_s: float, now: float) -> None:
        """A job took so long. What other sources' frames cost here earns nobody anything."""
        is_own = bool(job.tokens)
        if job.kind is FrameKind.DECODE:
            self._decode_s[job.micro_batch] = smoothed(self._decode_s.get(job.micro_batch, 0.0), compute_s)
            if is_own:
                self._debt_s = max(-DEBT_SHARE * compute_s, self._debt_s - self._share * compute_s)
        elif is_own:
            self._chunk_ended_s = now
            self._learn(job.shape[1], compute_s)

    def _learn(self, tokens: int, compute_s: float) -> None:
        """From a chunk of ours."""
        spared_s, self._spared_s = self._spared_s, None
        if tokens >= LEAST_CHUNK:
            self.s_per_token = smoothed(self.s_per_token, compute_s / tokens)
        if spared_s is None:
            self._debt_s = 0.0
            return
        self._debt_s += compute_s
        # The rest of a prompt may be shorter than a chunk was meant to be: that teaches nothing.
        if spared_s and compute_s and tokens >= self._length(spared_s) - 1:
            self._chunk_tokens = tokens * min(STRIDE, max(1 / STRIDE, spared_s / compute_s))

    def has_answered(
        self, micro_batch: MicroBatch, micro_batches: Iterable[MicroBatch], round_s: float, now: float
    ) -> None:
        """A decode step of ours is back after so long; it still counts as under way."""
        rows, is_plain = 0, self._chunk_ended_s <= now - round_s
        for other in micro_batches:
            if other.loop is not None and other.broken is None:
                is_plain = is_plain and not other.loop.is_prefilling
                rows += other.loop.rows_decoding if other.route == micro_batch.route else 0
        usual_s = self._plain_round_s.get((micro_batch.route, rows), 0.0)
        if is_plain:
            self._plain_round_s[micro_batch.route, rows] = smoothed(usual_s, round_s)
        elif usual_s:
            change = GROWTH if round_s <= SLOWER * usual_s else SHRINKAGE
            self._stretch = min(MOST_STRETCH, max(1.0, self._stretch * change))

    def has_failed(self) -> None:
        """The job at hand was not run, or for nobody."""
        self._spared_s = None

    def forget(self, micro_batch: MicroBatch) -> None:
        """A micro-batch is closed."""
        self._decode_s.pop(micro_batch.id, None)
        self._plain_round_s.clear()
        gone = self._gone.get(micro_batch.route, set())
        gone.discard(micro_batch.id)
        if not gone:
            self._gone.pop(micro_batch.route, None)


def _of_queue(micro_batch: MicroBatch, slack_s: float) -> Choice:
    due_s = min(job.arrived_s + (slack_s if job.kind is FrameKind.PREFILL else 0.0) for job in micro_batch.queue)
    return Choice(due_s, micro_batch.id, micro_batch.queue[0].kind)


class _Routes:
    """The micro-batches of each route that begin here and work, for the pipelines in which they wait for each other."""

    def __init__(self, sources: Iterable[MicroBatch], gone: Mapping[RouteKey, set[int]]) -> None:
        self._gone = gone
        self._loops: defaultdict[RouteKey, list[TokenLoop]] = defaultdict(list)
        for micro_batch in sources:
            if micro_batch.loop is None or micro_batch.broken is not None:
                continue
            if micro_batch.pipeline != "no-bubbles":
                self._loops[micro_batch.route].append(micro_batch.loop)

    def may_decode(self, micro_batch: MicroBatch) -> bool:
        if micro_batch.pipeline == "bubbles":
            return micro_batch.id not in self._gone.get(micro_batch.route, ()) or self.is_round_over(micro_batch.route)
        return self.may_prefill(micro_batch)

    def may_prefill(self, micro_batch: MicroBatch) -> bool:
        return micro_batch.pipeline != "sequential" or all(loop.is_quiet for loop in self._loops[micro_batch.route])

    def is_round_over(self, route: RouteKey) -> bool:
        return not any(loop.is_decoding for loop in self._loops[route])
