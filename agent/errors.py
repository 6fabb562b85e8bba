"""Everything the agent refuses on purpose. Each error has a `code` that travels on the wire.

AgentError
├── ConfigError              a file, key or environment variable of ours is wrong: file and key are named
├── ModelError
│   ├── ModelNotFound        no such directory below models_dir
│   ├── BadCheckpoint        a file is missing, truncated, of the wrong shape or of a refused format
│   ├── ModelMismatch        this device's copy has another digest than the coordinator's
│   └── WeightsUnavailable   no source gives the layers this device lacks: part and sources are named
├── OutOfMemory              how many MiB short, for which layers
├── ProviderUnavailable      the execution provider failed its one-node inference
├── ProtocolError
│   ├── BadMessage           a control message of unknown kind or wrong shape
│   ├── FrameRefused         a data frame broke a rule: carries the RefusalReason
│   └── VersionMismatch      both versions are named
├── NotAuthorized            a key that is not on the list, or that belongs to another device
├── UnknownMicroBatch        the route was closed or never opened here
├── AnswerTimeout            a frame was not answered in time: the hop is named
└── WorkerLost               the worker process died: its exit status is named
"""

from __future__ import annotations

from enum import Enum


class AgentError(Exception):
    """Root of the agent's errors; the text names the thing, the place and the way out."""

    code = "agent_error"


class ConfigError(AgentError):
    code = "bad_config"


class ModelError(AgentError):
    code = "model_error"


class ModelNotFound(ModelError):
    code = "model_not_found"


class BadCheckpoint(ModelError):
    code = "bad_checkpoint"


class ModelMismatch(ModelError):
    code = "model_mismatch"


class WeightsUnavailable(ModelError):
    code = "weights_unavailable"


class OutOfMemory(AgentError):
    code = "out_of_memory"


class ProviderUnavailable(AgentError):
    code = "provider_unavailable"


class ProtocolError(AgentError):
    code = "protocol_error"


class BadMessage(ProtocolError):
    code = "bad_message"


class RefusalReason(str, Enum):
    """Why a data frame was refused; the label of the counter `edge_frames_refused_total`."""

    HEADER = "header"
    VERSION = "version"
    CRC = "crc"
    PAYLOAD = "payload"
    SHAPE = "shape"
    MICRO_BATCH = "micro_batch"
    EPOCH = "epoch"
    GAP = "gap"
    ROW = "row"
    GENERATION = "generation"
    POSITION = "position"
    LAYERS = "layers"
    PEER = "peer"
    COMPUTE = "compute"


class FrameRefused(ProtocolError):
    """A data frame that broke a rule of docs/protocol.md; nothing of it was used."""

    code = "frame_refused"

    def __init__(self, reason: RefusalReason, detail: str) -> None:
        super().__init__(f"{reason.value}: {detail}")
        self.reason = reason
        self.detail = detail


class VersionMismatch(ProtocolError):
    code = "version_mismatch"


class NotAuthorized(AgentError):
    code = "not_authorized"


class UnknownMicroBatch(AgentError):
    code = "unknown_micro_batch"


class AnswerTimeout(AgentError):
    code = "answer_timeout"


class WorkerLost(AgentError):
    code = "worker_lost"
