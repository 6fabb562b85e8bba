"""Nobody starves, whoever else is served: short prompts beside long ones, decoding beside prefill, a row beside eight.

Also what leaves early: a session that is cancelled, one that is longer than its row.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.token_loop import STALLED_S
from agent.wire.codec import FrameKind
from agent.wire.messages import SessionEnded, SessionFailed
from tests.fakes.ring import session
from tests.fakes.timed_ring import TimedRing, even_pace

PACE = even_pace(row_s=0.01, token_s=0.004, call_s=0.01)


def busy_ring(devices: int, micro_batches: int, rows: int, sessions: int) -> TimedRing:
    """So many sessions decode for ever, evenly spread."""
    ring = TimedRing(devices, PACE, 0.001, context=4000)
    ring.open_micro_batches(micro_batches, rows)
    for number in range(sessions):
        ring.open_session(session(f"s{number}", [number + 1] * 4, 3900, micro_batch=number % micro_batches))
    ring.play(until_s=4.0)
    return ring


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_a_short_prompt_does_not_wait_for_a_long_one(devices: int) -> None:
    ring = busy_ring(devices, 3, 3, 6)
    ring.open_session(session("long", [1] * 3000, 1, micro_batch=0))
    ring.play(until_s=5.0)
    ring.open_session(session("short", [2] * 20, 1, micro_batch=1))
    ring.play(until_s=8.0)
    assert "short" in ring.ends
    assert "long" not in ring.ends


def test_a_long_prompt_does_not_wait_for_ever_for_short_ones() -> None:
    """Short prompts keep coming, as fast as they are served; each is due later than the one before."""
    ring = busy_ring(2, 4, 4, 4)
    ring.open_session(session("long", [1] * 1000, 1, micro_batch=0, patience_s=5.0))
    for number in range(400):
        if "long" in ring.ends:
            break
        name = f"short-{number}"
        ring.open_session(session(name, [2] * 40, 1, micro_batch=1 + number % 3))
        while name not in ring.ends:
            ring.play(until_s=ring.now + 0.05)
    assert "long" in ring.ends
    assert ring.now < 4.0 + 5.0 + 4 * 1000 * 0.004 + 5.0, "its patience, its own time at its share, and a margin"


@settings(max_examples=6)
@given(seed=st.integers(0, 2**32), devices=st.integers(1, 4), micro_batches=st.integers(1, 5))
def test_every_micro_batch_that_decodes_gets_its_turns(seed: int, devices: int, micro_batches: int) -> None:
    """With runs of random length, one chunk after the other beside them, and rows unevenly filled."""
    rng = random.Random(seed)
    ring = TimedRing(devices, lambda _, job: PACE(_, job) * rng.uniform(0.5, 1.5), 0.001, context=4000)
    ring.open_micro_batches(micro_batches, 3)
    decoding = []
    for number in range(micro_batches):
        for row in range(rng.randint(1, 2)):
            decoding.append(f"d{number}-{row}")
            ring.open_session(session(decoding[-1], [number + 1] * 4, 3900, micro_batch=number))
    ring.play(until_s=3.0)
    ring.open_session(session("prompt", [3] * 3900, 1, micro_batch=rng.randrange(micro_batches)))
    before = {name: len(ring.tokens[name]) for name in decoding}
    ring.play(until_s=9.0)
    steps = sorted(len(ring.tokens[name]) - before[name] for name in decoding)
    assert steps[0] >= 0.8 * steps[-1] - 2
    assert sum(ran.job.shape[1] for ran in ring.ran if ran.device == "a" and ran.job.kind is FrameKind.PREFILL) > 100


def test_of_eight_prompts_at_once_none_waits_long_after_its_turn() -> None:
    """They are served in the order in which they came, and decode meanwhile; the last one waits for eight prompts."""
    ring = TimedRing(2, PACE, 0.001, context=400)
    ring.open_micro_batches(2, 4)
    for number in range(8):
        ring.open_session(session(f"s{number}", [number + 1] * 200, 50, micro_batch=number % 2))
        ring.play(until_s=(number + 1) / 1000)
    ring.play()
    first_s = [ring.arrivals_s[f"s{number}"][0] for number in range(8)]
    assert first_s == sorted(first_s)
    assert first_s[-1] < 8 * 200 * 0.004 * 4
    assert all(isinstance(end, SessionEnded) for end in ring.ends.values())


# --- a route that stands still ---


def test_who_decodes_on_a_link_that_stands_still_spares_nobody_for_long() -> None:
    """Prompts on other micro-batches get whole chunks again; the frame that was late is answered as if nothing was."""
    ring = busy_ring(2, 2, 1, 1)
    arrive, held = ring.deliver, []
    ring.deliver = lambda *frame: held.append(frame) if frame[2].micro_batch == 0 else arrive(*frame)
    ring.play(until_s=5.0)
    assert held
    count = len(ring.tokens["s0"])
    ring.open_session(session("prompt", [2] * 1000, 1, micro_batch=1))
    ring.play(until_s=4.0 + 2 * STALLED_S + 1000 * 0.004 * 3)
    assert isinstance(ring.ends["prompt"], SessionEnded)
    assert max(job.shape[1] for job in ring.jobs_of("a")) == 128
    ring.deliver = arrive
    for frame in held:
        arrive(*frame)
    ring.play(until_s=ring.now + 1.0)
    assert len(ring.tokens["s0"]) > count + 5


def test_waiting_for_others_at_a_slow_stage_is_no_lateness() -> None:
    """Whole chunks of eight micro-batches, two of each, queue at the second stage: the last one waits for half a
    minute, where alone one takes two seconds."""
    token_s = {"a": 0.001, "b": 0.016}
    ring = TimedRing(2, lambda device, job: token_s[device] * job.shape[0] * job.shape[1], 0.001, context=400)
    ring.open_micro_batches(8, 2)
    for number in range(8):
        ring.open_session(session(f"alone-{number}", [1] * 128, 3, micro_batch=number))
        ring.play_with_ticks(ring.now + 4.0)
    for number in range(16):
        ring.open_session(session(f"s{number}", [2] * 256, 3, micro_batch=number % 8))
    began_s = ring.now
    ring.play_with_ticks(began_s + 100.0)
    assert all(isinstance(end, SessionEnded) for end in ring.ends.values())
    assert max(ring.arrivals_s[f"s{number}"][0] for number in range(16)) - began_s > 60.0


def test_a_link_that_stalls_for_five_seconds_costs_no_session() -> None:
    ring = busy_ring(2, 4, 2, 6)
    ring.open_session(session("prompt", [1] * 1000, 5, micro_batch=3))
    ring.play_with_ticks(6.0)
    arrive, held = ring.deliver, []
    ring.deliver = lambda *frame: held.append(frame)
    ring.play_with_ticks(11.0)
    ring.deliver = arrive
    for frame in held:
        arrive(*frame)
    counts = {name: len(tokens) for name, tokens in ring.tokens.items()}
    ring.play_with_ticks(12.0)
    assert not ring.ends
    assert all(len(ring.tokens[name]) > count for name, count in counts.items())
    ring.play_with_ticks(40.0)
    assert ring.tokens["prompt"] == ring.expected("prompt")


# --- who leaves early ---


@pytest.mark.parametrize("after_s", [0.0, 0.1, 0.5])
def test_a_cancelled_prompt_gives_its_row_and_its_chunks_away_at_once(after_s: float) -> None:
    ring = busy_ring(2, 2, 2, 3)
    ring.open_session(session("gone", [1] * 3000, 5, micro_batch=1))
    ring.play(until_s=ring.now + after_s)
    ring.cancel("gone")
    assert ring.ends["gone"] == SessionEnded("gone", "cancelled", 0)
    began = len(ring.ran)
    ring.open_session(session("next", [2] * 30, 5, micro_batch=1))
    ring.play(until_s=ring.now + 3.0)
    assert ring.tokens["next"] == ring.expected("next")
    generations = {
        ran.job.rows[0].generation
        for ran in ring.ran[began:]
        if ran.device == "a" and ran.job.kind is FrameKind.PREFILL
    }
    assert generations == {2}, "not one more chunk of the prompt that nobody waits for"


def test_a_cancelled_row_is_not_in_the_next_step() -> None:
    ring = busy_ring(2, 1, 3, 3)
    ring.cancel("s1")
    began = len(ring.ran)
    ring.play(until_s=ring.now + 1.0)
    decodes = [ran.job for ran in ring.ran[began:] if ran.device == "a" and ran.job.kind is FrameKind.DECODE]
    assert all([ref.row for ref in job.rows] == [0, 2] for job in decodes)
    assert len(ring.tokens["s0"]) > 10


def test_a_session_that_is_longer_than_its_row_ends_where_the_row_does() -> None:
    ring = TimedRing(2, PACE, context=32)
    ring.open_micro_batches(1, 2)
    ring.open_session(session("fits", [1] * 5, 10, micro_batch=0))
    ring.open_session(session("longer", [2] * 20, 100, micro_batch=0))
    ring.open_session(session("refused", [3] * 32, 1, micro_batch=0))
    ring.play()
    assert ring.ends["longer"] == SessionEnded("longer", "length", 13)
    assert ring.tokens["longer"] == ring.expected("longer")
    assert ring.tokens["fits"] == ring.expected("fits")
    refused = ring.ends["refused"]
    assert isinstance(refused, SessionFailed)
    assert "do not fit a context of 32" in refused.detail
