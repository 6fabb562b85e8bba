"""Bringing a plan onto the devices: wait for them, plan, load, open a micro-batch, and again after a loss. Pure.

`advance` looks at what is true now and does the next thing, so the order in which messages arrive does not matter:

    WAITING ──devices there, a plan fits──► LOADING ──all hold their layers──► OPENING ──all answered──► READY
       ▲                                       │                                  │                        │
       └────a device is back or restarted── REFUSED ◄──a device said Failed───────┘      a device was lost ┘
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from agent.wire.addresses import StageAddress
from agent.wire.messages import CloseMicroBatch, Failed, Load, MicroBatchOpened, OpenMicroBatch
from edgectl.devices import DeviceEvent, DeviceRecord, DeviceState, DeviceTable
from edgectl.effects import Effect, NoPlan, Notice, Ready, Send
from edgectl.epochs import Epochs
from planner.errors import PlannerError
from planner.types import Device, Plan, Route

PREFILL_CHUNK_TOKENS = 128
"""Tokens of one prefill frame: about the shortest at which a CPU's matrix products run at full speed."""

SETTLE_S = 2.0
"""With --min-devices: how long nobody new may have appeared before a plan is made without the missing ones."""

MAX_REOPENINGS = 5
"""Micro-batches that broke one after the other without a single token between them, before the plan is given up."""

MICRO_BATCHES = (1, 2)
"""Two numbers take turns: news of a broken micro-batch is not taken for news of its successor, and a coordinator that
restarts can close whatever its predecessor left open by naming the other one."""

PlanFor = Callable[[Sequence[Device]], Plan]
"""Makes the plan for devices in the order of cluster.toml. Raises PlannerError."""


class Phase(str, Enum):
    WAITING = "waiting"
    LOADING = "loading"
    OPENING = "opening"
    READY = "ready"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be deployed."""

    model: str
    digest: str
    plan_for: PlanFor
    devices: tuple[str, ...]
    """Devices to use, in the order of cluster.toml."""
    min_devices: int
    """Plan with this many when no more come; equal to the number of devices when all are needed."""
    source: str | None = None
    """The device that must hold layer 0; None leaves it to the plan."""


class Deployment:
    """One plan at a time and how far it has come."""

    def __init__(self, order: Order, table: DeviceTable, epochs: Epochs) -> None:
        self.order = order
        self.phase = Phase.WAITING
        self.plan: Plan | None = None
        self.micro_batch = 0
        self.epoch = 0
        self.code = ""
        self.detail = ""
        """Why the plan was refused."""
        self._table = table
        self._epochs = epochs
        self._awaited: set[str] = set()
        self._arrived = 0.0
        self._reopenings = 0

    @property
    def route(self) -> Route | None:
        return self.plan.routes[0] if self.plan is not None else None

    @property
    def source(self) -> DeviceRecord | None:
        """The device that drives the token loop."""
        return self._table[self.route.source] if self.route is not None else None

    def uses(self, device: str) -> bool:
        """Whether the device has a stage of the current plan."""
        return self.route is not None and any(stage.device == device for stage in self.route.stages)

    def missing(self) -> tuple[str, ...]:
        """Ordered devices that are not there."""
        return tuple(name for name in self.order.devices if not self._table[name].is_present)

    def advance(self, now: float) -> list[Effect]:
        """Does whatever can be done next."""
        effects: list[Effect] = []
        if self.phase is Phase.WAITING and self._is_complete(now):
            effects += self._make_plan()
        if self.phase is Phase.LOADING and all(record.state is DeviceState.READY for record in self._used()):
            effects += self._open()
        return effects

    def on_arrival(self, device: str, now: float) -> list[Effect]:
        """A device has connected, come back or lost what it held: what depended on it starts anew."""
        self._arrived = now
        if self.phase is Phase.REFUSED or self.uses(device):
            return self.start_over()
        return []

    def on_opened(self, device: str, opened: MicroBatchOpened) -> list[Effect]:
        if self.phase is not Phase.OPENING or opened.epoch != self.epoch:
            return []
        self._awaited.discard(device)
        if self._awaited or self.plan is None:
            return []
        self.phase = Phase.READY
        return [Ready(self.plan, self.epoch)]

    def on_failed(self, device: str, failed: Failed) -> list[Effect]:
        """A device could not do its part: the plan waits until a device restarts."""
        record = self._table[device]
        if failed.request == "load":
            is_current = record.apply(DeviceEvent.LOAD_FAILED)
        else:
            is_current = self.phase is Phase.OPENING and failed.micro_batch == self.micro_batch
        if not is_current:
            return []  # About something that was asked before the device, or the plan, started anew.
        record.problem = f"{failed.code}: {failed.detail}"
        return self._refuse(failed.code, naming(device, failed.detail))

    def on_broken(self, device: str, micro_batch: int, code: str, detail: str) -> list[Effect]:
        """A running micro-batch broke; its sessions have failed. Opens the next one under a new epoch.

        The news comes twice, from the source's worker and from its supervisor; the second is about an old number.
        """
        if micro_batch != self.micro_batch or self.phase not in (Phase.OPENING, Phase.READY):
            return []
        self._reopenings += 1
        if self._reopenings > MAX_REOPENINGS:
            broke = f"{MAX_REOPENINGS} micro-batches broke without a token"
            return self._refuse(code, f"{naming(device, detail)} ({broke})")
        notice = Notice("warning", f"micro-batch {micro_batch} broke, opening the next: {naming(device, detail)}")
        return [notice, *self._open()]

    def on_progress(self) -> None:
        """A token came through: the route works."""
        self._reopenings = 0

    def start_over(self) -> list[Effect]:
        """Gives the current plan up; the devices keep what they hold, so that an equal plan need not load it again."""
        effects = self.close()
        self.phase, self.plan, self._reopenings = Phase.WAITING, None, 0
        self.code, self.detail = "", ""
        return effects

    def close(self) -> list[Effect]:
        """Closes the open micro-batch on every device that is there."""
        if self.phase not in (Phase.OPENING, Phase.READY):
            return []
        return [
            Send(record.origin, CloseMicroBatch(self.micro_batch))
            for record in self._used()
            if record.is_present and record.origin is not None
        ]

    def _used(self) -> list[DeviceRecord]:
        return [self._table[stage.device] for stage in self.route.stages] if self.route is not None else []

    def _is_complete(self, now: float) -> bool:
        missing = len(self.missing())
        present = len(self.order.devices) - missing
        if missing == 0:
            return True
        if self.order.source is not None and not self._table[self.order.source].is_present:
            return False
        return present >= self.order.min_devices and now - self._arrived >= SETTLE_S

    def _make_plan(self) -> list[Effect]:
        present = [self._table[name] for name in self.order.devices if self._table[name].is_present]
        devices = [Device(record.name, record.hello.memory_bytes) for record in present if record.hello is not None]
        try:
            plan = self.order.plan_for(devices)
        except PlannerError as problem:
            self._refuse(problem.code, str(problem))
            return [NoPlan(problem.code, str(problem))]
        self.plan, self.phase = plan, Phase.LOADING
        effects: list[Effect] = []
        for record in self._used():
            load = self._load_for(record.name, plan)
            if record.load == load:
                continue
            assert record.origin is not None, f"{record.name} is present without a connection"
            record.apply(DeviceEvent.LOAD_SENT)
            record.load = load
            effects.append(Send(record.origin, load))
        return effects

    def _load_for(self, device: str, plan: Plan) -> Load:
        allotment = plan.allotment(device)
        return Load(
            model=self.order.model,
            digest=self.order.digest,
            resident=tuple((layers.start, layers.stop) for layers in allotment.resident),
            quantization=plan.quantization,
            block_size=plan.block_size,
            boundary=plan.boundary,
            slots=allotment.slots,
            context=plan.context,
        )

    def _open(self) -> list[Effect]:
        """Opens the micro-batch from the last stage to the first, so that every stage finds its successor open."""
        assert self.plan is not None, "opened without a plan"
        route = self.plan.routes[0]
        self.phase = Phase.OPENING
        first, second = MICRO_BATCHES
        self.micro_batch, other = (second, first) if self.micro_batch == first else (first, second)
        self.epoch = self._epochs.next()
        self._awaited = {stage.device for stage in route.stages}
        stages = tuple(
            StageAddress(
                device=stage.device,
                endpoint=self._table[stage.device].data_endpoint,
                key=self._table[stage.device].key,
                start=stage.layers.start,
                stop=stage.layers.stop,
            )
            for stage in route.stages
        )
        message = OpenMicroBatch(
            micro_batch=self.micro_batch,
            epoch=self.epoch,
            rows=route.rows,
            chunk=min(PREFILL_CHUNK_TOKENS, self.plan.context),
            codec=self.plan.codec,
            stages=stages,
        )
        effects: list[Effect] = []
        for record in reversed(self._used()):
            assert record.origin is not None, f"{record.name} is ready without a connection"
            # Its slots come free first; closing what is not open is no error.
            effects += [Send(record.origin, CloseMicroBatch(other)), Send(record.origin, message)]
        return effects

    def _refuse(self, code: str, detail: str) -> list[Effect]:
        effects = self.close()
        self.code = code
        self.detail = detail if not self.detail else f"{self.detail}; {detail}"
        self.phase = Phase.REFUSED
        return [*effects, Notice("error", detail)]


def naming(device: str, detail: str) -> str:
    """The detail with the device in front, unless it names it there already."""
    return detail if detail.startswith(f"{device}: ") else f"{device}: {detail}"
