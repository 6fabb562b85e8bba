"""Replayed tokens against an oracle without a channel, stages that run, and one pass over everything."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.compute import kernels
from agent.compute.calibration import calibration_file, write_calibrations
from agent.compute.damage import damage
from agent.compute.sampling import CannotSample, sample
from agent.errors import ModelMismatch
from agent.wire.addresses import StageAddress
from agent.wire.messages import OpenMicroBatch, Sampling
from edgectl.adaptive_bench.damage_replay import (
    RecordedSession,
    check_schedule,
    chunks,
    load_all_layers,
    load_receiver,
    pieces,
    replay,
    split_at,
)
from edgectl.model_source import LocatedModel, describe_model, locate_model
from edgectl.planning import ServingOptions
from planner.channel import Channel, ChannelState, erasing
from planner.types import LayerRange
from tests.fakes.calibrations import calibration
from tests.fakes.fake_engine import MODEL_DIR
from tests.fakes.fake_executor import VOCABULARY, FakeExecutor, expected_tokens
from tests.fakes.ring import Ring, session

LAYERS = 6
GREEDY = Sampling(temperature=0.0)
FADING = Channel((ChannelState(loss=0.5), ChannelState(), ChannelState(loss=0.2)), seed=4, coherence_tokens=2)


def whole(context: int = 64) -> FakeExecutor:
    return FakeExecutor(LAYERS, (LayerRange(0, LAYERS),), slots=2, context=context)


def schedules(last: int = 40) -> st.SearchStrategy[tuple[tuple[int, int], ...]]:
    """Any schedule of up to six moves."""
    positions = st.sets(st.integers(1, last), max_size=6).map(sorted)
    return positions.flatmap(
        lambda rising: st.lists(st.integers(1, LAYERS - 1), min_size=len(rising) + 1, max_size=len(rising) + 1).map(
            lambda splits: tuple(zip([0, *rising], splits, strict=True))
        )
    )


@given(schedules(), st.integers(1, 20), st.integers(1, 30), st.integers(0, 5))
def test_without_a_channel_a_moving_split_changes_nothing(
    schedule: tuple[tuple[int, int], ...], prompt_tokens: int, max_tokens: int, seed: int
) -> None:
    prompt = tuple(random.Random(seed).choices(range(VOCABULARY), k=prompt_tokens))
    sampling = Sampling(seed=seed, temperature=0.7, presence_penalty=0.5)
    stops = (seed, seed + 40)
    recorded = RecordedSession(
        prompt=prompt, max_tokens=max_tokens, sampling=sampling, schedule=schedule, stop_ids=stops
    )
    assert list(replay(whole(), recorded, slot=1)) == expected_tokens(
        LAYERS, prompt, max_tokens, sampling, stop_ids=stops
    )


def test_it_ends_where_the_context_does() -> None:
    recorded = RecordedSession(prompt=(1, 2, 3), max_tokens=100, sampling=GREEDY, schedule=((0, 2),))
    assert list(replay(whole(8), recorded)) == expected_tokens(LAYERS, (1, 2, 3), 100, GREEDY, context=8)


@pytest.mark.parametrize("codec", ["fp16", "int8"])
@pytest.mark.parametrize("split", [1, 4])
def test_stages_that_run_over_the_channel_give_the_same_tokens(split: int, codec: str) -> None:
    ring = Ring(LAYERS)
    ring.add_device("a", LayerRange(0, split))
    ring.add_device("b", LayerRange(split, 5))
    ring.add_device("c", LayerRange(5, LAYERS))
    stages = (
        StageAddress("a", "tcp://a:1", "key-a", 0, split),
        StageAddress("b", "tcp://b:1", "key-b", split, 5, FADING),
        StageAddress("c", "tcp://c:1", "key-c", 5, LAYERS),
    )
    for name in "abc":
        opened = OpenMicroBatch(1, 1, 1, 4, codec, stages)  # type: ignore[arg-type]
        ring.perform_effects(name, ring.members[name].stage.open_micro_batch(opened))
    opening = session("s", (5, 6, 7, 8, 9, 1), 20, sampling=Sampling(seed=3, temperature=0.9))
    ring.open_session("a", opening)
    ring.settle()
    recorded = RecordedSession(
        prompt=opening.prompt,
        max_tokens=opening.max_tokens,
        sampling=opening.sampling,
        schedule=((0, split),),
        channel=FADING,
        codec=codec,  # type: ignore[arg-type]
        later_cuts=(5,),
    )
    tokens = list(replay(whole(), recorded))
    assert len(tokens) == 20
    assert ring.tokens("s") == tokens
    assert tokens != ring.expected(opening), "the channel did something"


def test_the_split_decides_which_elements_are_lost() -> None:
    def tokens(*schedule: tuple[int, int]) -> list[int]:
        recorded = RecordedSession(prompt=(4, 5, 6), max_tokens=20, sampling=GREEDY, schedule=schedule, channel=FADING)
        return list(replay(whole(), recorded))

    stayed, moved = tokens((0, 2)), tokens((0, 2), (12, 3))
    # The token at position 11 was sampled from what position 10 gave; the one after it is the first that can differ.
    assert stayed[:10] == moved[:10]
    assert stayed != moved


def test_the_real_model_gives_what_one_pass_over_its_tokens_gives() -> None:
    """Teacher-forced: one run of all positions a side at a time, and every token is the best of its position."""
    schedule, prompt = ((0, 8), (9, 16), (14, 4)), tuple(range(200, 207))
    channel = erasing(0.05, seed=2)
    executor = load_all_layers(locate_model(str(MODEL_DIR)), ServingOptions(), 64, (4, 8, 16))
    recorded = RecordedSession(prompt=prompt, max_tokens=12, sampling=GREEDY, schedule=schedule, channel=channel)
    tokens = list(replay(executor, recorded))
    ids = (*prompt, *tokens)
    found = []
    for start, stop, split in pieces(schedule, 0, len(ids) - 1):
        hidden = executor.embed(np.array([ids[start:stop]], np.int64))
        hidden = executor.forward(LayerRange(0, split), hidden, 0, [start])
        hidden = kernels.unpack(kernels.pack(hidden, "fp16").data, "fp16", hidden.shape)
        damage(hidden[0], channel, split, start, codec="fp16")
        hidden = executor.forward(LayerRange(split, 32), hidden, 0, [start])
        found += [sample(row, GREEDY, 0, {}).token for row in executor.logits(hidden[0])]
    executor.close()
    assert len(tokens) == 12
    assert found[len(prompt) - 1 :] == tokens


def test_damage_that_leaves_nothing_says_so() -> None:
    class Broken(FakeExecutor):
        def logits(self, hidden: np.ndarray) -> np.ndarray:
            return np.full((len(hidden), VOCABULARY), np.nan, np.float32)

    recorded = RecordedSession(prompt=(1, 2), max_tokens=3, sampling=GREEDY, schedule=((0, 2),))
    with pytest.raises(CannotSample, match="nothing to choose from"):
        list(replay(Broken(LAYERS, (LayerRange(0, LAYERS),), slots=1, context=8), recorded))


@pytest.mark.parametrize(
    ("schedule", "reason"),
    [
        ((), "begins at position 0"),
        (((1, 2),), "begins at position 0"),
        (((0, 2), (5, 3), (5, 4)), "rise"),
        (((0, 2), (5, 3), (4, 4)), "rise"),
        (((0, 2), (5, 0)), "one layer"),
    ],
)
def test_what_is_no_schedule_is_refused(schedule: tuple[tuple[int, int], ...], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        check_schedule(schedule)
    with pytest.raises(ValueError, match=reason):
        RecordedSession(prompt=(1,), max_tokens=1, sampling=GREEDY, schedule=schedule)


def test_what_cannot_be_replayed_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        RecordedSession(prompt=(), max_tokens=1, sampling=GREEDY, schedule=((0, 2),))
    with pytest.raises(ValueError, match="do not rise behind"):
        RecordedSession(prompt=(1,), max_tokens=1, sampling=GREEDY, schedule=((0, 2), (3, 4)), later_cuts=(4,))
    recorded = RecordedSession(prompt=(1,), max_tokens=1, sampling=GREEDY, schedule=((0, LAYERS),))
    with pytest.raises(ValueError, match=r"\d"):
        list(replay(whole(), recorded))


@given(schedules(), st.integers(0, 20), st.integers(1, 30))
def test_pieces_cover_every_position_once_with_its_split(
    schedule: tuple[tuple[int, int], ...], start: int, length: int
) -> None:
    found = list(pieces(schedule, start, start + length))
    covered = [(position, split) for begin, end, split in found for position in range(begin, end)]
    assert covered == [(position, split_at(schedule, position)) for position in range(start, start + length)]


@given(st.integers(0, 300), st.integers(1, 300), st.integers(3, 128))
def test_no_chunk_is_one_token_unless_all_is(start: int, length: int, most: int) -> None:
    found = list(chunks(start, start + length, most))
    assert found[0][0] == start
    assert found[-1][1] == start + length
    assert all(before[1] == after[0] for before, after in pairwise(found))
    assert all(1 <= end - begin <= most for begin, end in found)
    assert length == 1 or all(end - begin > 1 for begin, end in found)


def test_a_device_with_the_models_calibration_conceals_with_it(tmp_path: Path) -> None:
    """What lmmse puts in place of lost elements is another thing than rescaling, and so are the tokens."""
    (tmp_path / MODEL_DIR.name).symlink_to(MODEL_DIR)
    located = LocatedModel(MODEL_DIR.name, tmp_path / MODEL_DIR.name)
    model = describe_model(locate_model(str(MODEL_DIR)))
    channel = Channel((ChannelState(loss=0.4),), seed=3, concealment="lmmse")
    recorded = RecordedSession(
        prompt=tuple(range(200, 220)), max_tokens=10, sampling=GREEDY, schedule=((0, 8),), channel=channel
    )
    executor = load_all_layers(located, ServingOptions(), 64, (8,))
    without = list(replay(executor, recorded, load_receiver(located, model)))
    assert without == list(replay(executor, recorded))
    known = calibration(8, model.spec.hidden_size)
    write_calibrations(calibration_file(tmp_path, MODEL_DIR.name), [known], model.name, model.digest)
    assert list(replay(executor, recorded, load_receiver(located, model))) != without
    write_calibrations(calibration_file(tmp_path, MODEL_DIR.name), [known], "another", "0" * 64)
    with pytest.raises(ModelMismatch, match="calibration of another"):
        load_receiver(located, model)
    executor.close()
