"""The devices of the cluster as the coordinator sees them: who is connected, and what each one holds.

Rules
1. A device's state changes only through TRANSITIONS; an event that the table lacks for a state changes nothing.
2. The name of a device is the one the transport proved by its key, never the one a message claims.
3. A device has at most one supervisor connection; a newer one replaces it.
No clock here: `now` is an argument, in seconds of a monotonic clock.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

import msgspec

from agent.wire.addresses import PeerKey
from agent.wire.messages import DEVICE_LOST_S, DEVICE_SUSPECT_S, Heartbeat, Hello, Load, WorkerRestarted


class DeviceState(str, Enum):
    ABSENT = "absent"
    CONNECTED = "connected"
    LOADING = "loading"
    READY = "ready"
    LOST = "lost"


class DeviceEvent(str, Enum):
    HELLO = "hello"
    HEARD = "heard"
    LOAD_SENT = "load-sent"
    LOADED = "loaded"
    LOAD_FAILED = "load-failed"
    WORKER_RESTARTED = "worker-restarted"
    SILENT = "silent"


TRANSITIONS: dict[DeviceState, dict[DeviceEvent, DeviceState]] = {
    DeviceState.ABSENT: {
        DeviceEvent.HELLO: DeviceState.CONNECTED,
    },
    DeviceState.CONNECTED: {
        DeviceEvent.LOAD_SENT: DeviceState.LOADING,
        DeviceEvent.SILENT: DeviceState.LOST,
    },
    DeviceState.LOADING: {
        DeviceEvent.HELLO: DeviceState.CONNECTED,
        DeviceEvent.LOADED: DeviceState.READY,
        DeviceEvent.LOAD_FAILED: DeviceState.CONNECTED,
        DeviceEvent.WORKER_RESTARTED: DeviceState.CONNECTED,
        DeviceEvent.SILENT: DeviceState.LOST,
    },
    DeviceState.READY: {
        DeviceEvent.HELLO: DeviceState.CONNECTED,
        DeviceEvent.LOAD_SENT: DeviceState.LOADING,
        DeviceEvent.WORKER_RESTARTED: DeviceState.CONNECTED,
        DeviceEvent.SILENT: DeviceState.LOST,
    },
    # A link that comes back without a new Hello: the agent never noticed, and nothing it holds is relied upon.
    DeviceState.LOST: {
        DeviceEvent.HELLO: DeviceState.CONNECTED,
        DeviceEvent.HEARD: DeviceState.CONNECTED,
    },
}

PRESENT = frozenset({DeviceState.CONNECTED, DeviceState.LOADING, DeviceState.READY})


@dataclass(slots=True)
class DeviceRecord:
    """One device; written only by DeviceTable and Deployment."""

    name: str
    key: str
    state: DeviceState = DeviceState.ABSENT
    origin: bytes | None = None
    """Connection of its supervisor."""
    worker_origin: bytes | None = None
    """Connection of its worker, if it has said WorkerHello."""
    hello: Hello | None = None
    data_endpoint: str = ""
    heartbeat: Heartbeat | None = None
    heard: float = 0.0
    is_suspected: bool = False
    """Silent for long enough that no session should depend on it, not for so long that it is lost."""
    load: Load | None = None
    """What it was last asked to hold; None once it holds nothing."""
    is_fetching: bool = False
    """Its layers come from elsewhere: it has no copy of the model, or another one."""
    loaded_bytes: int = 0
    problem: str = ""
    """Why it could not do what it was asked, until it restarts."""

    @property
    def is_present(self) -> bool:
        return self.state in PRESENT

    def hear(self, now: float) -> bool:
        """It has said something; whether it was suspected."""
        was_suspected, self.is_suspected = self.is_suspected, False
        self.heard = now
        return was_suspected

    def is_same_worker(self, worker: str) -> bool:
        """Whether a Hello names the worker process this record is about."""
        return self.hello is not None and bool(worker) and self.hello.worker == worker

    def restarted(self, news: WorkerRestarted) -> None:
        """Another worker process runs now, at another endpoint."""
        self.data_endpoint = news.data_endpoint
        self.problem = ""
        if self.hello is not None:
            self.hello = msgspec.structs.replace(self.hello, worker=news.worker, data_endpoint=news.data_endpoint)

    def apply(self, event: DeviceEvent) -> bool:
        """Changes the state as TRANSITIONS says; whether anything changed."""
        following = TRANSITIONS[self.state].get(event, self.state)
        changed = following is not self.state
        self.state = following
        if following in (DeviceState.CONNECTED, DeviceState.LOST, DeviceState.ABSENT):
            self.load = None
            self.loaded_bytes = 0
        return changed


class DeviceTable:
    """All devices that cluster.toml names, in its order."""

    def __init__(self, devices: Sequence[tuple[str, str]]) -> None:
        self._records = {name: DeviceRecord(name=name, key=key) for name, key in devices}

    def __iter__(self) -> Iterator[DeviceRecord]:
        return iter(self._records.values())

    def __getitem__(self, name: str) -> DeviceRecord:
        return self._records[name]

    def __contains__(self, name: object) -> bool:
        return name in self._records

    def peers_of(self, name: str) -> tuple[PeerKey, ...]:
        """The devices that may connect to the data endpoint of `name`: all others."""
        return tuple(PeerKey(record.name, record.key) for record in self if record.name != name)

    def hello(self, origin: bytes, hello: Hello, name: str, now: float) -> None:
        """A supervisor has connected or started again: it holds nothing yet."""
        record = self._records[name]
        record.apply(DeviceEvent.HELLO)
        record.hear(now)
        record.origin, record.hello = origin, hello
        record.data_endpoint = hello.data_endpoint
        record.heartbeat, record.load, record.loaded_bytes, record.problem = None, None, 0, ""

    def reconnected(self, origin: bytes, hello: Hello, name: str, now: float) -> None:
        """The same worker over a new connection: whatever it holds it still holds."""
        record = self._records[name]
        record.hear(now)
        record.origin, record.hello = origin, hello
        record.data_endpoint = hello.data_endpoint

    def suspected(self, now: float) -> list[DeviceRecord]:
        """Devices that count as suspected from now on."""
        quiet = [record for record in self._silent_for(DEVICE_SUSPECT_S, now) if not record.is_suspected]
        for record in quiet:
            record.is_suspected = True
        return quiet

    def silent(self, now: float) -> list[DeviceRecord]:
        """Devices that count as lost from now on."""
        quiet = self._silent_for(DEVICE_LOST_S, now)
        for record in quiet:
            record.apply(DeviceEvent.SILENT)
            record.heartbeat, record.is_suspected = None, False
        return quiet

    def _silent_for(self, seconds: float, now: float) -> list[DeviceRecord]:
        return [record for record in self if record.is_present and now - record.heard > seconds]
