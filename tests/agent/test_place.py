"""Places on a route, where it may be cut, and slots."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from agent.errors import AgentError
from agent.place import MAX_CHUNK_BYTES, NOTHING_LOADED, ModelShape, SlotRanges, place_of
from agent.wire.addresses import StageAddress
from agent.wire.codec import MAX_EPOCH, MAX_HIDDEN_SIZE, MAX_MICRO_BATCH
from agent.wire.data_plane import DATA_LIMITS
from agent.wire.messages import OpenMicroBatch
from planner.types import LayerRange
from tests.fakes.routes import opening, route

CONTEXT = 32
HIDDEN = 8


def shape(start: int = 0, stop: int = 6) -> ModelShape:
    return ModelShape(6, HIDDEN, 8, CONTEXT, (LayerRange(start, stop),), kv_elements=16)


# --- places ---


def test_neighbours_form_a_ring() -> None:
    opened = opening(route(2, 4, 6))
    places = [place_of(name, opened, shape()) for name in "abc"]
    assert [(p.previous.device, p.next.device) for p in places] == [("c", "b"), ("a", "c"), ("b", "a")]
    assert [(p.is_source, p.is_last) for p in places] == [(True, False), (False, False), (False, True)]
    assert [p.layers for p in places] == [LayerRange(0, 2), LayerRange(2, 4), LayerRange(4, 6)]
    alone = place_of("a", opening(route(6)), shape())
    assert (alone.is_source, alone.is_last, alone.next.device, alone.previous.device) == (True, True, "a", "a")


@pytest.mark.parametrize(
    ("opened", "loaded", "words"),
    [
        (opening(route(2, 4, 6)), NOTHING_LOADED, "nothing is loaded"),
        (opening(route(6)[:0]), shape(), "names a 0 times"),
        (opening(route(6) * 2), shape(), "names a 2 times"),
        (opening(route(2, 4)), shape(), "ends at layer 4, the model has 6"),
        (opening(route(2, 8)), shape(), "ends at layer 8"),
        (opening(route(2, 4, 6)[::2]), shape(), r"c runs \[4, 6\), expected to start at 2"),
        (opening(route(2, 2, 6)), shape(), r"b runs \[2, 2\)"),
        (opening(route(2, 6)), shape(2, 6), r"a: layers \[0, 2\) are not resident"),
        (opening(route(6), rows=0), shape(), "0 rows, 1 to 16"),
        (opening(route(6), rows=17), shape(), "17 rows, 1 to 16"),
        (opening(route(6), chunk=2), shape(), "chunk of 2, 3 to 4096"),
        (opening(route(6), chunk=4097), shape(), "chunk of 4097"),
    ],
)
def test_a_route_that_cannot_run_here_says_why(opened: OpenMicroBatch, loaded: ModelShape, words: str) -> None:
    with pytest.raises(AgentError, match=words):
        place_of("a", opened, loaded)


@pytest.mark.parametrize(
    ("number", "epoch"), [(-1, 1), (MAX_MICRO_BATCH + 1, 1), (1, 0), (1, -5), (1, MAX_EPOCH + 1), (2**64 - 1, 1)]
)
def test_numbers_that_no_frame_could_carry_are_refused(number: int, epoch: int) -> None:
    with pytest.raises(AgentError, match=f"micro-batch {number} in epoch {epoch}"):
        place_of("a", OpenMicroBatch(number, epoch, 1, 4, "fp16", route(6)), shape())


def test_a_chunk_that_no_frame_could_carry_is_refused() -> None:
    assert DATA_LIMITS.part_bytes == MAX_CHUNK_BYTES
    wide = ModelShape(6, 8192, 8, CONTEXT, (LayerRange(0, 6),))
    most = MAX_CHUNK_BYTES // (4 * 8192)
    place_of("a", OpenMicroBatch(1, 1, 1, most, "fp32", route(6)), wide)
    with pytest.raises(AgentError, match="a prefill chunk of 2049 tokens in fp32 is 65 MiB, 64 fit a frame"):
        place_of("a", OpenMicroBatch(1, 1, 1, most + 1, "fp32", route(6)), wide)


@pytest.mark.parametrize(("device", "start", "stop"), [("a", 0, 3), ("b", 1, 4), ("c", 4, 6)])
def test_a_split_point_that_moves_needs_more_layers_on_both_sides(device: str, start: int, stop: int) -> None:
    opened = replace(opening(route(2, 4, 6)), split_points=(1, 3))
    assert place_of(device, opened, shape(start, stop)).split == 2
    for elements in (0, MAX_HIDDEN_SIZE + 1):  # unknown, or a token of one layer fits no frame
        with pytest.raises(AgentError, match=f"{device}: keys and values of what is loaded here cannot"):
            place_of(device, opened, shape(start, stop)._replace(kv_elements=elements))
    for less in ((start + 1, stop), (start, stop - 1)):
        with pytest.raises(AgentError, match=rf"{device}: layers \[{start}, {stop}\) are not resident"):
            place_of(device, opened, shape(*less))


@pytest.mark.parametrize(
    ("stages", "points", "words"),
    [
        (route(2, 4, 6), (1, 4), "split points 4 do not lie between a and b: 1 to 3 do"),
        (route(2, 4, 6), (0, 1), "split points 0 "),
        (route(2, 4, 6), (-3, 9), "split points -3, 9 "),
        (route(6), (2,), "a route of one device, which is not split"),
    ],
)
def test_a_split_point_where_the_route_cannot_be_cut_says_why(
    stages: tuple[StageAddress, ...], points: tuple[int, ...], words: str
) -> None:
    with pytest.raises(AgentError, match=words):
        place_of("a", replace(opening(stages), split_points=points), shape())


# --- slots ---


@given(
    slots=st.integers(1, 12),
    steps=st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.integers(1, 5)), max_size=30),
)
def test_slots_are_never_shared_and_never_lost(slots: int, steps: list[tuple[bool, int, int]]) -> None:
    ranges = SlotRanges(slots)
    taken: dict[int, range] = {}
    for reserves, number, rows in steps:
        if not reserves:
            ranges.release(number)
            taken.pop(number, None)
        elif number not in taken:
            used = {slot for held in taken.values() for slot in held}
            fits = [s for s in range(slots - rows + 1) if not used & set(range(s, s + rows))]
            if fits:
                assert ranges.reserve(number, rows) == fits[0], "first fit"
                taken[number] = range(fits[0], fits[0] + rows)
            else:
                with pytest.raises(AgentError, match=f"no {rows} contiguous slots"):
                    ranges.reserve(number, rows)
