"""From devices to an open micro-batch: what is sent to whom in which phase, and what happens when it goes wrong."""

from __future__ import annotations

from collections.abc import Sequence

from agent.wire.messages import PROTOCOL_VERSION, CloseMicroBatch, Failed, Hello, Load, MicroBatchOpened, OpenMicroBatch
from edgectl.deploy import SETTLE_S, Deployment, Order, Phase, naming
from edgectl.devices import DeviceEvent, DeviceTable
from edgectl.effects import Effect, NoPlan, Notice, Ready, Send
from edgectl.epochs import Epochs
from edgectl.routes import MAX_REOPENINGS, MicroBatchRecord
from planner.errors import Infeasible
from planner.types import Allotment, Device, LayerRange, Plan, Route, Stage

LAYERS = 12
NAMES = ("a", "b", "c")


def equal_plan(devices: Sequence[Device]) -> Plan:
    """The layers in equal parts; a device with less than a byte per layer holds none of them."""
    share = LAYERS // len(devices)
    if any(device.memory_bytes < share for device in devices):
        raise Infeasible("does not fit", [f"{device.name} is short" for device in devices])
    stages = tuple(Stage(d.name, LayerRange(i * share, (i + 1) * share)) for i, d in enumerate(devices))
    return Plan(
        model="m",
        quantization="int4",
        block_size=32,
        boundary="fp16",
        codec="fp16",
        context=64,
        routes=(Route(stages),),
        allotments=tuple(Allotment(s.device, (s.layers,), 1, len(s.layers), 100) for s in stages),
    )


class Scene:
    """A deployment and its table; devices are moved by hand."""

    def __init__(self, *, min_devices: int = 3, source: str | None = None) -> None:
        self.table = DeviceTable([(name, f"key-{name}") for name in NAMES])
        order = Order("m", "digest", equal_plan, NAMES, min_devices, source)
        self.deployment = Deployment(order, self.table, Epochs(1))

    @property
    def batch(self) -> MicroBatchRecord:
        """The only micro-batch of a plan with one."""
        (batch,) = self.deployment.micro_batches
        return batch

    def arrive(self, name: str, now: float = 0.0, memory_bytes: int = 100) -> list[Effect]:
        hello = Hello(PROTOCOL_VERSION, name, "0.1.0", "boot", f"tcp://{name}:1", memory_bytes, "cpu")
        self.table.hello(name.encode(), hello, name, now)
        return [*self.deployment.on_arrival(name, now), *self.deployment.advance(now)]

    def loaded(self, *names: str) -> list[Effect]:
        for name in names:
            self.table[name].apply(DeviceEvent.LOADED)
        return self.deployment.advance(0.0)

    def opened(self, *names: str) -> list[Effect]:
        number, epoch = self.batch.number, self.batch.epoch
        return [effect for name in names for effect in self.deployment.on_opened(name, MicroBatchOpened(number, epoch))]

    def ready(self) -> Scene:
        for name in NAMES:
            self.arrive(name)
        self.loaded(*NAMES)
        assert any(isinstance(effect, Ready) for effect in self.opened(*NAMES))
        return self


def sent(effects: list[Effect], kind: type) -> dict[str, object]:
    """Messages of one kind by receiver, in the order in which they were sent."""
    return {e.origin.decode(): e.message for e in effects if isinstance(e, Send) and isinstance(e.message, kind)}


def test_nothing_is_loaded_before_all_devices_are_there() -> None:
    scene = Scene()
    assert scene.arrive("b") == []
    assert scene.arrive("c") == []
    assert scene.deployment.missing() == ("a",)
    loads = sent(scene.arrive("a"), Load)
    assert {name: load.resident for name, load in loads.items() if isinstance(load, Load)} == {
        "a": ((0, 4),),
        "b": ((4, 8),),
        "c": ((8, 12),),
    }
    assert loads["a"] == Load("m", "digest", ((0, 4),), "int4", 32, "fp16", 1, 64)


def test_the_micro_batch_opens_from_the_last_stage_to_the_first_when_all_hold_their_layers() -> None:
    scene = Scene()
    for name in NAMES:
        scene.arrive(name)
    assert scene.loaded("a", "c") == []
    opens = sent(scene.loaded("b"), OpenMicroBatch)
    assert list(opens) == ["c", "b", "a"]
    message = opens["a"]
    assert isinstance(message, OpenMicroBatch)
    assert [(s.device, s.endpoint, s.key, s.start, s.stop) for s in message.stages] == [
        ("a", "tcp://a:1", "key-a", 0, 4),
        ("b", "tcp://b:1", "key-b", 4, 8),
        ("c", "tcp://c:1", "key-c", 8, 12),
    ]
    assert message.chunk == 64  # never longer than the context
    assert scene.deployment.phase is Phase.OPENING
    assert scene.opened("a", "b") == []
    assert [type(effect) for effect in scene.opened("c")] == [Ready]


def test_an_answer_to_an_older_epoch_opens_nothing() -> None:
    scene = Scene()
    for name in NAMES:
        scene.arrive(name)
    scene.loaded(*NAMES)
    for name in NAMES:
        assert scene.deployment.on_opened(name, MicroBatchOpened(scene.batch.number, 1)) == []
    assert scene.deployment.phase is Phase.OPENING


def test_a_restarted_device_alone_loads_again() -> None:
    scene = Scene().ready()
    epoch = scene.deployment.epoch
    effects = scene.arrive("b")
    assert list(sent(effects, CloseMicroBatch)) == ["a", "b", "c"]
    assert list(sent(effects, Load)) == ["b"]
    opens = sent(scene.loaded("b"), OpenMicroBatch)
    assert list(opens) == ["c", "b", "a"]
    assert scene.deployment.epoch > epoch


def test_every_open_gives_the_other_numbers_slots_back_first() -> None:
    scene = Scene()
    for name in NAMES:
        scene.arrive(name)
    messages = [effect.message for effect in scene.loaded(*NAMES) if isinstance(effect, Send)]
    for close, opening in zip(messages[::2], messages[1::2], strict=True):
        assert isinstance(close, CloseMicroBatch)
        assert isinstance(opening, OpenMicroBatch)
        assert {close.micro_batch, opening.micro_batch} == {1, 2}


def test_a_lost_device_closes_the_micro_batch_on_the_others() -> None:
    scene = Scene().ready()
    scene.table["c"].apply(DeviceEvent.SILENT)
    assert list(sent(scene.deployment.start_over(), CloseMicroBatch)) == ["a", "b"]
    assert scene.deployment.advance(100.0) == []
    assert scene.deployment.phase is Phase.WAITING


def test_fewer_devices_are_enough_after_a_while() -> None:
    scene = Scene(min_devices=2)
    scene.arrive("a", now=0.0)
    scene.arrive("c", now=1.0)
    assert scene.deployment.advance(0.9 + SETTLE_S) == []
    assert list(sent(scene.deployment.advance(1.0 + SETTLE_S), Load)) == ["a", "c"]
    assert scene.arrive("b", now=9.0) == []  # it comes too late and nothing running is disturbed


def test_the_named_source_is_waited_for() -> None:
    scene = Scene(min_devices=1, source="c")
    scene.arrive("a", now=0.0)
    assert scene.deployment.advance(100.0) == []
    scene.arrive("c", now=100.0)
    assert list(sent(scene.deployment.advance(100.0 + SETTLE_S), Load)) == ["a", "c"]


def test_a_model_that_does_not_fit_is_said_with_its_causes_until_a_device_changes() -> None:
    scene = Scene()
    scene.arrive("a")
    scene.arrive("b")
    effects = scene.arrive("c", memory_bytes=1)
    assert [effect for effect in effects if isinstance(effect, NoPlan)] == [
        NoPlan("out_of_memory", "does not fit\n  a is short\n  b is short\n  c is short")
    ]
    assert (scene.deployment.phase, scene.deployment.code) == (Phase.REFUSED, "out_of_memory")
    assert scene.deployment.advance(100.0) == []
    assert list(sent(scene.arrive("c"), Load)) == ["a", "b", "c"]


def test_a_failed_load_names_the_device_and_is_tried_again_when_it_restarts() -> None:
    scene = Scene()
    for name in NAMES:
        scene.arrive(name)
    scene.loaded("a", "c")
    effects = scene.deployment.on_failed("b", Failed("load", "model_mismatch", "digest 12, expected 34"), 0.0)
    assert effects == [Notice("error", "b: digest 12, expected 34")]
    assert scene.table["b"].problem == "model_mismatch: digest 12, expected 34"
    assert scene.deployment.phase is Phase.REFUSED
    assert scene.deployment.advance(50.0) == []
    assert list(sent(scene.arrive("b"), Load)) == ["b"]
    assert scene.table["b"].problem == ""


def test_several_failures_are_all_named() -> None:
    scene = Scene()
    for name in NAMES:
        scene.arrive(name)
    for name in "ab":
        scene.deployment.on_failed(name, Failed("load", "model_not_found", f"{name}: no model m"), 0.0)
    assert scene.deployment.detail == "a: no model m; b: no model m"


def test_a_broken_micro_batch_is_followed_by_the_next_and_its_second_report_is_ignored() -> None:
    scene = Scene().ready()
    number, epoch = scene.batch.number, scene.deployment.epoch
    effects = scene.deployment.on_broken("a", number, "frame_refused", "crc: at b", 0.0)
    assert list(sent(effects, OpenMicroBatch)) == ["c", "b", "a"]
    assert scene.deployment.epoch == epoch + 1
    assert scene.deployment.on_broken("a", number, "frame_refused", "crc: at b", 0.0) == []
    scene.opened(*NAMES)
    assert scene.deployment.phase is Phase.READY


def test_micro_batches_that_break_without_a_token_are_given_up() -> None:
    scene = Scene().ready()
    for _ in range(MAX_REOPENINGS):
        scene.deployment.on_broken("a", scene.batch.number, "answer_timeout", "late", 0.0)
        scene.opened(*NAMES)
    scene.deployment.on_progress(scene.batch.number)
    for _ in range(MAX_REOPENINGS):
        scene.deployment.on_broken("a", scene.batch.number, "answer_timeout", "late", 0.0)
        scene.opened(*NAMES)
    assert scene.deployment.phase is Phase.READY
    scene.deployment.on_broken("a", scene.batch.number, "answer_timeout", "late", 0.0)
    assert scene.deployment.phase is Phase.REFUSED
    assert scene.deployment.code == "answer_timeout"


def test_details_name_their_device_once() -> None:
    assert naming("a", "a: no") == naming("a", "no") == "a: no"
