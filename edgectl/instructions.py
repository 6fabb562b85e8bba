"""What devices are told so that a plan runs on them: what to load, and the micro-batches they are stages of. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from agent.wire.addresses import BulkSource, StageAddress
from agent.wire.messages import CloseMicroBatch, Load, OpenMicroBatch
from edgectl.devices import DeviceRecord, DeviceTable
from edgectl.routes import MAX_MICRO_BATCHES, MicroBatchRecord, slots_of
from planner.channel import Channel
from planner.types import Pipeline, Plan, Route

PREFILL_CHUNK_TOKENS = 128
"""Tokens of one prefill frame: about the shortest at which a CPU's matrix products run at full speed."""


def sweep() -> Iterator[CloseMicroBatch]:
    """A coordinator before this one may have left any micro-batch open; closing what is not open is no error."""
    return (CloseMicroBatch(number) for number in range(1, 2 * MAX_MICRO_BATCHES + 1))


def load_of(model: str, digest: str, plan: Plan, device: str, cuts: tuple[int, ...] = ()) -> Load:
    """What a device is to hold, wherever it gets it from. Raises KeyError for a device the plan does not use."""
    return Load(
        model=model,
        digest=digest,
        resident=tuple((layers.start, layers.stop) for layers in plan.allotment(device).resident),
        quantization=plan.quantization,
        block_size=plan.block_size,
        boundary=plan.boundary,
        slots=slots_of(plan, device),
        context=plan.context,
        cuts=cuts,
    )


def sources_for(receiver: DeviceRecord, table: DeviceTable, own: BulkSource | None) -> tuple[BulkSource, ...]:
    """Where a device may fetch its parts: the coordinator first, then every other device that serves what it keeps."""
    return (() if own is None else (own,)) + tuple(
        BulkSource(record.name, record.hello.bulk_endpoint, record.key)
        for record in table
        if record is not receiver and record.is_present and record.hello is not None and record.hello.bulk_endpoint
    )


def addresses_of(
    route: Route, table: DeviceTable, channels: Mapping[tuple[str, str], Channel]
) -> tuple[StageAddress, ...]:
    """The stages of a route as their neighbours see them, each with the channel of the link that leads into it."""
    addresses = []
    for place, stage in enumerate(route.stages):
        record = table[stage.device]
        # Into the first stage come token ids, which no link erases.
        before = route.stages[place - 1].device if place else ""
        addresses.append(
            StageAddress(
                device=stage.device,
                endpoint=record.data_endpoint,
                key=record.key,
                start=stage.layers.start,
                stop=stage.layers.stop,
                channel=channels.get((before, stage.device)),
            )
        )
    return tuple(addresses)


def opening_of(
    batch: MicroBatchRecord,
    stages: tuple[StageAddress, ...],
    plan: Plan,
    pipeline: Pipeline,
    split_points: tuple[int, ...] = (),
) -> OpenMicroBatch:
    return OpenMicroBatch(
        micro_batch=batch.number,
        epoch=batch.epoch,
        rows=batch.rows,
        chunk=min(PREFILL_CHUNK_TOKENS, plan.context),
        codec=plan.codec,
        stages=stages,
        pipeline=pipeline,
        split_points=split_points,
    )
