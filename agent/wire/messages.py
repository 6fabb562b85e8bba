"""Every control message, one frozen Struct each, by direction; protocol version and limits.

A control message is one MessagePack map with a `kind`. Unknown fields are ignored, so a field may be added within a
protocol version; unknown kinds are refused. Data frames are not here: see `codec`. Semantics: docs/protocol.md.
"""

from __future__ import annotations

from typing import Any, Literal, Union

import msgpack
import msgspec

from agent.errors import BadMessage
from agent.wire.addresses import BulkSource, LinkShape, PeerKey, StageAddress
from agent.wire.link_report import LinkObservation, RadioObservation
from agent.wire.measure_messages import (
    DeviceMeasured,
    LinkMeasured,
    MeasureDevice,
    MeasureLink,
    MeasureProgress,
    MeasureQuality,
    QualityMeasured,
)
from agent.wire.message import Message
from planner.types import BoundaryType, Codec, Pipeline, Quantization

PROTOCOL_VERSION = 3

MAX_CONTROL_BYTES = 4 << 20
"""A prompt of 131,072 ids is at most 640 KiB; four MiB also holds the longest list of allowed peers."""

MAX_ARRAY_LENGTH = 1 << 20
MAX_MAP_LENGTH = 4096
MAX_STRING_BYTES = 64 << 10


EndReason = Literal["stop", "length", "cancelled"]


class Sampling(msgspec.Struct, frozen=True):
    """How the last stage chooses a token: a pure function of logits, these parameters and the position."""

    seed: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: bool = False
    top_logprobs: int = 0


class Opening(msgspec.Struct, frozen=True):
    """Names a session's row in the frame that carries its first tokens (third part of a data frame)."""

    row: int
    generation: int
    sampling: Sampling


class HistogramSnapshot(msgspec.Struct, frozen=True):
    """Counts per bucket of `agent.device.telemetry.BUCKETS_S` (cumulative ones are for Prometheus to make)."""

    counts: tuple[int, ...]
    sum: float


class Telemetry(msgspec.Struct, frozen=True):
    """Totals since the worker started; names are in `agent.device.telemetry`."""

    histograms: dict[str, HistogramSnapshot] = {}
    counters: dict[str, int] = {}
    links: tuple[LinkObservation, ...] = ()
    """As they are now, no totals."""


# --- agent (supervisor) → coordinator ---------------------------------------------------------------------------------


class Hello(Message, frozen=True):
    protocol: int
    device: str
    agent_version: str
    boot_id: str
    data_endpoint: str
    memory_bytes: int
    """What a model may take on this device."""
    provider: str
    """Execution provider that passed its inference: cpu, cuda or tensorrt."""
    bulk_endpoint: str = ""
    """Where others fetch the parts of models this device keeps; empty where it offers none."""
    worker: str = ""
    """Names the worker process: a Hello with the same one comes from a connection that broke and loses nothing."""


class Heartbeat(Message, frozen=True):
    """Sent every HEARTBEAT_INTERVAL_S; `worker_tick` grows only while the worker's own loop turns."""

    worker_tick: int
    busy: str = ""
    """A declared long operation (loading), empty otherwise."""
    telemetry: Telemetry = Telemetry()
    resident_bytes: int = 0
    radios: tuple[RadioObservation, ...] = ()
    """Wireless interfaces of the device; empty where it has none."""


class LoadProgress(Message, frozen=True):
    model: str
    layers_done: int
    layers_total: int
    bytes_done: int = 0
    """Of what is fetched from elsewhere; both 0 where the device has the model."""
    bytes_total: int = 0


class Loaded(Message, frozen=True):
    model: str
    digest: str
    memory_bytes: int
    seconds: float
    batch_invariant: bool = True
    """Passed the start-up self-check: tokens do not depend on rows beside them or on chunk sizes."""


class MicroBatchOpened(Message, frozen=True):
    micro_batch: int
    epoch: int


class MicroBatchClosed(Message, frozen=True):
    micro_batch: int


class Failed(Message, frozen=True):
    """A request of the coordinator that could not be carried out, or a micro-batch that broke while running.

    After a broken micro-batch (`request` is "micro-batch") its sessions have failed; it serves again under a new epoch.
    """

    request: str
    """Kind of the refused message: "load", "open-micro-batch", or "micro-batch"."""
    code: str
    detail: str
    micro_batch: int = -1


class WorkerRestarted(Message, frozen=True):
    """The worker died and a new one runs: nothing is loaded any more."""

    cause: str
    data_endpoint: str
    worker: str = ""


# --- source worker → coordinator (its own DEALER) --------------------------------------------------------------------


class SessionMoved(Message, frozen=True):
    """From this position on a session's hidden states leave the source after another layer: its damage schedule."""

    session: str
    position: int
    split: int


class SplitMoved(Message, frozen=True):
    """Every session of a micro-batch runs with the new split point."""

    micro_batch: int
    split: int
    bytes: int
    """Of keys and values that changed hands."""
    seconds: float


class SplitKept(Message, frozen=True):
    """A move that was asked for did not happen: sessions go on as before."""

    micro_batch: int
    split: int
    """What was asked for."""
    code: str
    detail: str


class WorkerHello(Message, frozen=True):
    protocol: int
    device: str


class TokenEvent(Message, frozen=True):
    session: str
    index: int
    """0 for the first generated token."""
    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class SessionEnded(Message, frozen=True):
    session: str
    reason: EndReason
    tokens: int


class SessionFailed(Message, frozen=True):
    session: str
    code: str
    detail: str


# --- coordinator → agent (supervisor) --------------------------------------------------------------------------------


class Welcome(Message, frozen=True):
    protocol: int
    coordinator_version: str
    peers: tuple[PeerKey, ...]
    """Devices that may connect to this one's data endpoint."""
    links: tuple[LinkShape, ...] = ()
    """Links from this device that are to be emulated."""


class Rejected(Message, frozen=True):
    """The coordinator will not work with this agent; `detail` says why and names both versions where they differ."""

    code: str
    detail: str


class Load(Message, frozen=True):
    model: str
    digest: str
    resident: tuple[tuple[int, int], ...]
    quantization: Quantization
    block_size: int
    boundary: BoundaryType
    slots: int
    context: int
    sources: tuple[BulkSource, ...] = ()
    """Where a device without the model fetches its layers, the coordinator first."""
    cuts: tuple[int, ...] = ()
    """Layers at which a block has to begin, so that a route may be cut there."""


class Unload(Message, frozen=True):
    pass


class OpenMicroBatch(Message, frozen=True):
    """Reserves `rows` contiguous slots and connects to the next stage; answered before its first frame."""

    micro_batch: int
    epoch: int
    rows: int
    chunk: int
    """Most tokens in one prefill frame, at least 3 (a chunk is never one token unless the prompt is)."""
    codec: Codec
    stages: tuple[StageAddress, ...]
    pipeline: Pipeline = "no-bubbles"
    """How the source times the steps of its micro-batches against each other."""
    split_points: tuple[int, ...] = ()
    """Layers at which the source's part may end while the micro-batch is open; empty: where it ends now."""


class CloseMicroBatch(Message, frozen=True):
    micro_batch: int


# --- coordinator → source worker -------------------------------------------------------------------------------------


class CoordinatorAlive(Message, frozen=True):
    """Every second; a source that hears nothing for COORDINATOR_SILENCE_S ends its sessions."""


class OpenSession(Message, frozen=True):
    session: str
    micro_batch: int
    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Sampling
    stop_ids: tuple[int, ...] = ()
    emitted: tuple[int, ...] = ()
    """Tokens the client has already: replayed as decode steps, not sent again."""
    patience_s: float = 0.0
    """In how many seconds from now the first token is due: of two prompts the more urgent one goes first."""


class MoveSplit(Message, frozen=True):
    """Let the source's part of a micro-batch's route end at another of its split points; sessions go on."""

    micro_batch: int
    split: int


class CancelSession(Message, frozen=True):
    session: str


class ResumeEvents(Message, frozen=True):
    """Send the session's events again from this index (the coordinator saw a gap or reconnected)."""

    session: str
    index: int


DeviceMessage = Union[
    Heartbeat,
    LoadProgress,
    Loaded,
    MicroBatchOpened,
    MicroBatchClosed,
    Failed,
    MeasureProgress,
    DeviceMeasured,
    LinkMeasured,
    QualityMeasured,
    WorkerRestarted,
]
"""What a supervisor sends after its Hello."""
FromAgent = Union[Hello, DeviceMessage]
FromSource = Union[WorkerHello, TokenEvent, SessionEnded, SessionFailed, SessionMoved, SplitMoved, SplitKept]
ToAgent = Union[
    Welcome, Rejected, Load, Unload, OpenMicroBatch, CloseMicroBatch, MeasureDevice, MeasureLink, MeasureQuality
]
ToSource = Union[CoordinatorAlive, OpenSession, CancelSession, ResumeEvents, MoveSplit, Rejected]

HEARTBEAT_INTERVAL_S = 1.0
DEVICE_SUSPECT_S = 3.5
"""Without a heartbeat for this long, three intervals and a half, a device gets no new session."""
DEVICE_LOST_S = 7.5
"""Without one for this long it counts as lost and its sessions fail. A link that stalls for 5 s costs none: its next
heartbeat may be 5 s late, another connection takes a second, and one interval and a half are left for a busy machine.
A worker process that dies is noticed at once: its supervisor says so."""
COORDINATOR_SILENCE_S = 30.0


def encode(message: Message) -> bytes:
    """One control message as a MessagePack map."""
    packed: bytes = msgpack.packb(msgspec.to_builtins(message), use_bin_type=True)
    return packed


def decode(data: bytes | memoryview, union: Any) -> Any:
    """Bytes from outside to a typed message of `union` (FromAgent, ToAgent, …). Raises BadMessage, nothing else.

    Typed Any because a union is no `type`; callers annotate the result with the same union.
    """
    if len(data) > MAX_CONTROL_BYTES:
        raise BadMessage(f"control message of {len(data)} bytes, at most {MAX_CONTROL_BYTES}")
    try:
        raw = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            max_str_len=MAX_STRING_BYTES,
            max_bin_len=0,
            max_array_len=MAX_ARRAY_LENGTH,
            max_map_len=MAX_MAP_LENGTH,
            max_ext_len=0,
        )
    except Exception as problem:  # msgpack raises ValueError, UnicodeDecodeError and its own types
        raise BadMessage(f"not MessagePack within limits: {problem}") from problem
    try:
        return msgspec.convert(raw, type=union)
    except msgspec.ValidationError as problem:
        kind = raw.get("kind") if isinstance(raw, dict) else None
        raise BadMessage(f"message kind {kind!r}: {problem}") from problem
