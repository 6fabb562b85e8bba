"""What the messages to devices say, from a plan and a table of devices."""

from __future__ import annotations

from agent.wire.addresses import BulkSource
from agent.wire.messages import PROTOCOL_VERSION, CloseMicroBatch, Hello, Load
from edgectl.devices import DeviceTable
from edgectl.instructions import addresses_of, load_of, opening_of, sources_for, sweep
from edgectl.routes import MAX_MICRO_BATCHES, routes_of
from planner.channel import erasing
from tests.fakes.fake_agents import two_routes

PLAN = two_routes(())


def table() -> DeviceTable:
    devices = DeviceTable([(name, f"key-{name}") for name in "abc"])
    for name, bulk in (("a", "tcp://a:9"), ("b", ""), ("c", "tcp://c:9")):
        hello = Hello(PROTOCOL_VERSION, name, "0.1.0", "boot", f"tcp://{name}:1", 100, "cpu", bulk_endpoint=bulk)
        devices.hello(name.encode(), hello, name, 0.0)
    return devices


def test_every_number_a_plan_can_use_is_closed() -> None:
    assert list(sweep()) == [CloseMicroBatch(number) for number in range(1, 2 * MAX_MICRO_BATCHES + 1)]


def test_a_device_of_two_routes_keeps_the_slots_of_both() -> None:
    assert load_of("m", "digest", PLAN, "a") == Load("m", "digest", ((0, 3),), "fp32", 32, "fp16", 5, 64)


def test_weights_come_from_the_coordinator_and_from_others_that_serve_theirs() -> None:
    devices = table()
    own = BulkSource("", "tcp://coordinator:9", "key")
    assert sources_for(devices["a"], devices, own) == (own, BulkSource("c", "tcp://c:9", "key-c"))
    assert sources_for(devices["c"], devices, None) == (BulkSource("a", "tcp://a:9", "key-a"),)


def test_a_stage_has_the_loss_of_the_link_into_it() -> None:
    first, second = addresses_of(PLAN.routes[1], table(), {("a", "c"): erasing(0.1, 7), ("c", "a"): erasing(0.5)})
    assert (first.device, first.channel) == ("a", None)
    assert (second.device, second.channel) == ("c", erasing(0.1, 7))
    assert (second.endpoint, second.key, second.start, second.stop) == ("tcp://c:1", "key-c", 3, 6)


def test_an_opening_says_how_steps_are_timed_and_no_chunk_is_longer_than_the_context() -> None:
    batch = routes_of(PLAN)[0].micro_batches[1]
    batch.open_under(9, ("a", "b"))
    stages = addresses_of(PLAN.routes[0], table(), {})
    opening = opening_of(batch, stages, PLAN, "bubbles")
    assert (opening.micro_batch, opening.epoch, opening.rows, opening.chunk) == (batch.number, 9, 2, 64)
    assert (opening.codec, opening.pipeline, opening.stages) == ("fp16", "bubbles", stages)
    assert opening.split_points == ()
    assert opening_of(batch, stages, PLAN, "bubbles", (2, 3)).split_points == (2, 3)


def test_a_device_cuts_its_blocks_where_a_route_may_be_split() -> None:
    assert load_of("m", "digest", PLAN, "a", (1, 2)).cuts == (1, 2)
