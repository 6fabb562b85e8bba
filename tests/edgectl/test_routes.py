"""Numbers of micro-batches, what a route offers, and how many slots its devices need."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgectl.routes import MAX_MICRO_BATCHES, BatchState, MicroBatchRecord, Seat, routes_of, slots_of
from tests.fakes.fake_agents import plan_of, route_of, two_routes


def test_a_route_offers_what_is_open() -> None:
    (record,) = routes_of(plan_of(route_of("a", "b", micro_batches=3, rows=2)))
    first, second, third = record.micro_batches
    assert (list(record.seats()), record.is_settled) == ([], False)
    first.open_under(7, record.devices)
    second.open_under(8, record.devices)
    assert first.awaited == {"a", "b"}
    first.state = BatchState.OPEN
    assert list(record.seats()) == [Seat(first.number, 0, 2, "a")]
    assert not record.is_settled
    second.give_up("b: no slot", 5.0)
    third.state = BatchState.OPEN
    assert record.is_settled
    assert [batch.is_alive for batch in record.micro_batches] == [True, False, True]


def test_slots_are_the_rows_of_every_route_through_a_device() -> None:
    plan = two_routes(())
    assert {name: slots_of(plan, name) for name in "abcd"} == {"a": 5, "b": 4, "c": 1, "d": 0}
    assert [[batch.index for batch in route.micro_batches] for route in routes_of(plan)] == [[0, 1], [2]]


def test_a_route_runs_where_each_of_its_micro_batches_is_split() -> None:
    (record,) = routes_of(plan_of(route_of("a", "b", micro_batches=2)), (3, 5))
    assert record.split_points == (3,)
    first, second = record.micro_batches
    first.split = 2
    assert [stage.layers.stop for stage in record.at(first).stages] == [2, 6]
    assert record.at(second) == record.route
    (alone,) = routes_of(plan_of(route_of("a")), (3, 5))
    assert alone.split_points == ()
    assert alone.at(alone.micro_batches[0]) == alone.route


@given(st.lists(st.integers(0, MAX_MICRO_BATCHES - 1), max_size=40))
def test_no_two_open_micro_batches_have_one_number_and_none_keeps_its_own(openings: list[int]) -> None:
    batches = [MicroBatchRecord(index, 0, 1) for index in range(MAX_MICRO_BATCHES)]
    for epoch, index in enumerate(openings, start=1):
        before = batches[index].number
        other = batches[index].open_under(epoch, ("a",))
        number = batches[index].number
        assert number != before
        assert other == (before or other)
        assert {number, other} == {2 * index + 1, 2 * index + 2}
        numbers = [batch.number for batch in batches if batch.number]
        assert len(set(numbers)) == len(numbers)
        assert max(numbers) <= 2 * MAX_MICRO_BATCHES
