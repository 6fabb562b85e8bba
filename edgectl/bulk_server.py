"""The coordinator's end of the bulk socket: manifests, and parts of the model made on demand and kept in the cache.

For `edgectl serve`: make one after the model is located and before the devices are asked to load, hand `source` to the
deployment for `Load.sources` (before any peer's), and `close` it at the end:

    bulk = BulkServer.open(serving.config, keys, located.directory, serving.model.digest)   # raises ConfigError
    Load(..., sources=(bulk.source, *peers))
    bulk.close()

A thread serves; a child process makes parts (`part_maker`) from the first one on that is asked for and not cached. So
neither costs anything where every device has the model. `allow` is the cluster's list of devices, as for the control
plane.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from pathlib import Path

from agent.compute.layer_store import LayerStore
from agent.compute.part import PartKey
from agent.config import parse_size, split_endpoint
from agent.errors import AgentError, ConfigError
from agent.weight_fetch import COORDINATOR
from agent.weight_manifest import MODEL, encode_manifest
from agent.weight_server import Given, OpenParts, PartServer, bytes_of, chunk_of, key_of
from agent.wire.addresses import BulkSource
from agent.wire.bulk import Fetch, Reply, ReplyKind
from agent.wire.bulk_plane import BulkServerPlane
from agent.wire.security import AllowList, KeyPair
from edgectl.config import ClusterConfig
from edgectl.model_source import CACHE_DIR
from edgectl.part_maker import Job, PartMaker

logger = logging.getLogger(__name__)

CACHE_LIMIT_BYTES = 100 << 30
"""Of the coordinator's own parts: what an agent takes unless its owner says otherwise."""
PAUSE_S = 0.5
"""After an error of our own, so that one that stays does not keep a processor busy."""
_ANY_HOSTS = frozenset({"*", "0.0.0.0", "::"})


class ModelParts:
    """What the coordinator answers; satisfies `agent.weight_server.Parts`."""

    def __init__(self, directory: Path, digest: str, cache_dir: Path, limit_bytes: int) -> None:
        root = cache_dir / "layers"
        self._directory = directory
        self._digest = digest
        self._cache_dir = cache_dir
        self._open_parts = OpenParts(LayerStore(root, limit_bytes))
        self._maker = PartMaker(directory, root, limit_bytes)
        self._manifest: bytes | None = None

    def answer(self, fetch: Fetch) -> Reply:
        """See `Parts.answer`."""
        if fetch.digest != self._digest:
            detail = f"model {fetch.digest[:12]} is not served here, {self._digest[:12]} is"
            return Reply(fetch.number, ReplyKind.MISSING, detail=detail)
        try:
            if fetch.part == MODEL:
                return bytes_of(self._model_manifest(), fetch)
            key = key_of(fetch)
            given = self._find(key, fetch.part)
        except (ValueError, AgentError) as problem:
            return Reply(fetch.number, ReplyKind.REFUSED, detail=str(problem))
        if given is None:
            return self._later(Job(key, fetch.part), fetch)
        return chunk_of(given, fetch) if fetch.item else bytes_of(given.header.raw, fetch)

    def close_idle(self) -> None:
        """Give up files nobody asks for."""
        self._open_parts.close_idle()

    def close(self) -> None:
        """End the child and close the files."""
        self._maker.close()
        self._open_parts.close()

    def _find(self, key: PartKey, part: str) -> Given | None:
        return self._maker.in_memory(Job(key, part)) or self._open_parts.find(key, part)

    def _later(self, job: Job, fetch: Fetch) -> Reply:
        problem = self._maker.take_problem(job)
        if problem is not None:
            return Reply(fetch.number, ReplyKind.REFUSED, detail=problem)
        self._maker.make(job)
        return Reply(fetch.number, ReplyKind.LATER)

    def _model_manifest(self) -> bytes:
        if self._manifest is None:
            self._manifest = encode_manifest(self._directory, self._cache_dir)
        return self._manifest


class BulkServer:
    """A thread that gives the served model's parts to the cluster's devices."""

    def __init__(self, plane: BulkServerPlane, parts: ModelParts, source: BulkSource, bytes_per_s: float) -> None:
        """Use `open`."""
        self.endpoint = plane.endpoint
        """With the port that was chosen."""
        self.source = source
        """For `Load.sources`."""
        self._plane = plane
        self._parts = parts
        self._server = PartServer(plane, parts, bytes_per_s)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="bulk", daemon=True)
        self._thread.start()

    @classmethod
    def open(
        cls,
        config: ClusterConfig,
        keys: KeyPair,
        directory: Path,
        digest: str,
        cache_dir: Path | None = None,
    ) -> BulkServer:
        """Bind and serve the model in `directory`. Raises ConfigError for an endpoint or a rate that is none."""
        coordinator = config.coordinator
        bind = coordinator.bulk_bind or _beside(coordinator.bind)
        try:
            host, _ = split_endpoint(bind)
            bytes_per_s = parse_size(coordinator.bulk_rate or "0")
        except ValueError as problem:
            raise ConfigError(f"coordinator.bulk_bind or coordinator.bulk_rate: {problem}") from problem
        allow = AllowList({device.key: device.name for device in config.devices})
        plane = BulkServerPlane(keys, allow, bind)
        _, port = split_endpoint(plane.endpoint)
        # Devices know best how to reach this machine: as they do for its control endpoint.
        endpoint = f"tcp://*:{port}" if host in _ANY_HOSTS or not coordinator.bulk_bind else plane.endpoint
        parts = ModelParts(directory, digest, cache_dir or CACHE_DIR.expanduser(), CACHE_LIMIT_BYTES)
        return cls(plane, parts, BulkSource(COORDINATOR, endpoint, keys.public), bytes_per_s)

    @property
    def bytes_sent(self) -> dict[str, int]:
        """By device: what it was given since the start."""
        return dict(self._server.bytes_sent)

    def close(self) -> None:
        """Stop serving; returns when thread and child have ended."""
        self._stopped.set()
        self._thread.join()
        self._parts.close()

    def _run(self) -> None:
        with contextlib.closing(self._plane):
            while not self._stopped.is_set():
                try:
                    self._server.turn()
                    self._parts.close_idle()
                except Exception:  # whatever a request brings about, the next one is answered
                    logger.exception("bulk_request_failed")
                    self._stopped.wait(PAUSE_S)


def _beside(control: str) -> str:
    """A free port at the host of the control endpoint."""
    return f"{control.rpartition(':')[0]}:*"
