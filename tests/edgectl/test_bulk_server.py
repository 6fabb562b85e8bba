"""The coordinator's bulk server and a device's transfer, end to end: every tensor equal, and far fewer bytes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from agent.compute.layer_store import LayerStore
from agent.compute.part import PartKey, parts_of
from agent.config import Z85_KEY
from agent.errors import ConfigError, WeightsUnavailable
from agent.weight_transfer import Transfer, source_endpoint
from agent.wire.addresses import BulkSource
from agent.wire.security import generate_keys
from edgectl.bulk_server import BulkServer
from edgectl.config import ClusterConfig, CoordinatorConfig, DeviceConfig
from planner.types import LayerRange
from tests.fakes.fake_engine import MODEL_DIR
from tests.fakes.weight_sources import CHECKPOINT, GIB, KEY, check_arrays

COORDINATOR, DEVICE, STRANGER = generate_keys(), generate_keys(), generate_keys()
CONTROL = "tcp://127.0.0.1:5570"


def config(**settings: str) -> ClusterConfig:
    return ClusterConfig(
        coordinator=CoordinatorConfig(bind=CONTROL, **settings),
        devices=(DeviceConfig(name="device", key=DEVICE.public),),
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BulkServer]:
    cache = tmp_path_factory.mktemp("coordinator")
    with closing(BulkServer.open(config(), COORDINATOR, MODEL_DIR, KEY.digest, cache)) as opened:
        yield opened


def reachable(server: BulkServer) -> BulkSource:
    """The source as a device sees it."""
    source = server.source
    return BulkSource(source.device, source_endpoint(source, CONTROL), source.key)


def fetched(server: BulkServer, root: Path, key: PartKey = KEY) -> Transfer:
    return Transfer(key, [reachable(server)], DEVICE, LayerStore(root, GIB), lambda done, total: None)


def test_a_device_gets_its_layers_in_its_quantization_and_nothing_else(server: BulkServer, tmp_path: Path) -> None:
    parts = parts_of([LayerRange(4, 7)], CHECKPOINT.spec.num_layers)
    assert server.source.endpoint.startswith("tcp://*:")
    assert Z85_KEY.fullmatch(server.source.key)
    before = server.bytes_sent.get("device", 0)
    with closing(fetched(server, tmp_path)) as transfer:
        transfer.want(parts)
        check_arrays(transfer, parts)
        transfer.finish()
        sent = server.bytes_sent["device"] - before
        model = (MODEL_DIR / "model.safetensors").stat().st_size
        # Three of 32 layers, four bits and some for scales against two bytes.
        assert transfer.bytes_total < sent < model * 3 / 32
    kept = sorted(path.stem for path in (tmp_path / KEY.directory).glob("*.safetensors"))
    assert kept == ["layer-004", "layer-005", "layer-006"]


def test_other_renderings_are_made_too(server: BulkServer, tmp_path: Path) -> None:
    key = PartKey(KEY.digest, "fp32", 0, "fp16")
    with closing(fetched(server, tmp_path, key)) as transfer:
        transfer.want(["layer-000", "embedding"])
        transfer.embedding()
        transfer.finish()


def test_another_model_is_not_given(server: BulkServer, tmp_path: Path) -> None:
    key = PartKey("0" * 64, "int4", 32, "fp32")
    with pytest.raises(WeightsUnavailable, match="model 000000000000 is not served here"):
        fetched(server, tmp_path, key)


def test_a_layer_beyond_the_model_is_an_error_that_says_so(server: BulkServer, tmp_path: Path) -> None:
    with closing(fetched(server, tmp_path)) as transfer:
        transfer.want(["head"])
        transfer.finish()
        transfer._wanted["layer-040"] = 1
        transfer._new.append("layer-040")
        with pytest.raises(WeightsUnavailable, match="layer-040: the model has 32 layers"):
            transfer.finish()


def test_a_stranger_gets_nothing(server: BulkServer, tmp_path: Path) -> None:
    class Enough(Exception):
        pass

    def waiting(done: int, total: int) -> None:
        raise Enough

    with pytest.raises(Enough):
        Transfer(KEY, [reachable(server)], STRANGER, LayerStore(tmp_path, GIB), waiting)


def test_without_a_disk_it_serves_from_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgectl.bulk_server.CACHE_LIMIT_BYTES", 0)
    with (
        closing(BulkServer.open(config(), COORDINATOR, MODEL_DIR, KEY.digest, tmp_path / "coordinator")) as server,
        closing(fetched(server, tmp_path / "device")) as transfer,
    ):
        transfer.want(["layer-000", "layer-001", "head"])
        check_arrays(transfer, ["layer-000", "layer-001", "head"])
    assert not list((tmp_path / "coordinator").rglob("*.safetensors"))


def test_opening_costs_no_process_and_closing_is_quick(tmp_path: Path) -> None:
    began_s, before = time.monotonic(), set(psutil.Process().children())
    with closing(BulkServer.open(config(), COORDINATOR, MODEL_DIR, KEY.digest, tmp_path)):
        assert set(psutil.Process().children()) == before
    assert time.monotonic() - began_s < 3


@pytest.mark.parametrize("settings", [{"bulk_bind": "nowhere"}, {"bulk_rate": "fast"}])
def test_settings_that_are_none_are_named(settings: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"bulk_bind|bulk_rate"):
        BulkServer.open(config(**settings), COORDINATOR, MODEL_DIR, KEY.digest, tmp_path)


def test_an_endpoint_of_its_own_is_told_as_it_is(tmp_path: Path) -> None:
    settings = config(bulk_bind="tcp://127.0.0.1:0")
    with closing(BulkServer.open(settings, COORDINATOR, MODEL_DIR, KEY.digest, tmp_path)) as server:
        assert server.source.endpoint == server.endpoint
