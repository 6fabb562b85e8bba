"""What can go wrong, in one table: code → exit code, HTTP status, OpenAI error type, sentence, hint.

Codes are those of `agent.errors`, `planner.errors`, the engine and the HTTP side; a test holds the table complete.
The sentence is what an HTTP client is told; details (device names, files) stay in our log and on the terminal.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class ExitCode(IntEnum):
    """Exit status of every command."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    """Wrong flags or arguments: Click's own."""
    CONFIG = 3
    """A file or key of ours is wrong."""
    UNAVAILABLE = 4
    """A device, the coordinator or a provider is not there; trying later may help."""
    MODEL = 5
    """The model directory is missing, broken, unsupported or different on a device."""
    MEMORY = 6
    """The model does not fit."""
    REFUSED = 7
    """A key or protocol version that the other side does not accept."""
    SESSION_LOST = 8
    """An answer was under way and could not be finished."""
    INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Failure:
    """One row of the table."""

    exit_code: ExitCode
    http_status: int
    kind: str
    """OpenAI's error `type`."""
    message: str
    """One sentence that is safe to show to any client."""
    hint: str = ""
    """The way out, for a person at a terminal."""
    retry_after_s: float | None = None


_REQUEST = "invalid_request_error"
_SERVER = "server_error"


def _request(http_status: int, message: str, hint: str = "", kind: str = _REQUEST) -> Failure:
    return Failure(ExitCode.FAILURE, http_status, kind, message, hint)


def _lost(http_status: int, message: str, hint: str, retry_after_s: float | None = None) -> Failure:
    return Failure(ExitCode.SESSION_LOST, http_status, _SERVER, message, hint, retry_after_s)


def _unavailable(message: str, hint: str, retry_after_s: float) -> Failure:
    return Failure(ExitCode.UNAVAILABLE, 503, _SERVER, message, hint, retry_after_s)


def _model(message: str, hint: str) -> Failure:
    return Failure(ExitCode.MODEL, 500, _SERVER, message, hint)


def _config(message: str, hint: str) -> Failure:
    return Failure(ExitCode.CONFIG, 500, _SERVER, message, hint)


_WATCH = "`edgectl status` shows each device; the agent's journal says why it stopped"
_BUG = "this is a bug of ours or a damaged link; the log has the details"

FAILURES: dict[str, Failure] = {
    # --- what an HTTP request can get wrong; the message is replaced by one that names the parameter ---
    "invalid_value": _request(400, "A parameter has a value that cannot be used"),
    "invalid_json": _request(400, "The body is not a JSON object"),
    "missing_parameter": _request(400, "A required parameter is missing"),
    "unknown_parameter": _request(400, "A parameter is not known"),
    "unsupported_parameter": _request(400, "A parameter is not supported here"),
    "context_length_exceeded": _request(400, "The prompt is longer than the context", "shorten the prompt"),
    "no_chat_template": _request(400, "The model has no chat template", "use /v1/completions"),
    "invalid_api_key": _request(401, "The API key is missing or wrong", "send Authorization: Bearer KEY"),
    "host_not_allowed": _request(403, "This server answers on loopback names only", kind="permission_error"),
    "model_not_found": Failure(
        ExitCode.MODEL, 404, _REQUEST, "No such model", "the directory must lie below the device's models_dir"
    ),
    "not_found": _request(404, "No such path", "GET /v1/models lists the model"),
    "method_not_allowed": _request(405, "This path does not take that method"),
    "request_timeout": _request(408, "The body did not arrive in time"),
    "body_too_large": _request(413, "The body is too large"),
    # --- sessions ---
    "no_agent": _unavailable("No device is connected that could answer", _WATCH, 5.0),
    "not_ready": _unavailable("The model is still being loaded", "`edgectl status` shows the progress", 5.0),
    "shutting_down": _unavailable("The coordinator is shutting down", "try again when it is back", 10.0),
    "queue_full": Failure(
        ExitCode.UNAVAILABLE, 429, "rate_limit_error", "All rows are taken and the queue is full", "try again", 2.0
    ),
    "too_many_sessions": Failure(
        ExitCode.UNAVAILABLE, 429, "rate_limit_error", "This API key has too many sessions", "wait for one to end", 2.0
    ),
    "no_free_row": _lost(500, "A device has no row left for this session", _BUG),
    "cancelled": _lost(503, "The session was ended by the other side", _WATCH, 2.0),
    "session_failed": _lost(500, "The session failed on a device", _WATCH),
    "answer_timeout": _lost(504, "A device did not answer in time", _WATCH, 5.0),
    "device_lost": _lost(503, "A device that held layers was lost", _WATCH, 10.0),
    "worker_lost": _lost(503, "The worker process of a device died", _WATCH, 10.0),
    "unknown_micro_batch": _lost(500, "A device no longer knows this session's route", _BUG),
    "unknown_session": _lost(500, "A device no longer knows this session", _BUG),
    "frame_refused": _lost(500, "A device refused a data frame", _BUG),
    "bad_message": _lost(500, "A device sent a control message that cannot be read", _BUG),
    "protocol_error": _lost(500, "A device broke the protocol", _BUG),
    # --- moves of a split: why one did not happen; sessions go on as they were ---
    "unknown_split": _lost(500, "A device was asked for a split that it does not hold", _BUG),
    "split_busy": _lost(503, "Two moves of a split met", "the next decision asks again", 2.0),
    "superseded": _lost(503, "A newer move of the split took this one's place", "the newer one tells its own end", 2.0),
    "peer_refused": _lost(503, "The other device refused keys and values", _WATCH, 2.0),
    "move_late": _lost(504, "A split moved more slowly than its sessions grew", "the link is too slow for moves", 5.0),
    # --- set-up: devices, models, plans ---
    "bad_config": Failure(ExitCode.CONFIG, 500, _SERVER, "The configuration is wrong", "fix the key that is named"),
    "out_of_memory": Failure(
        ExitCode.MEMORY, 503, _SERVER, "The model does not fit in memory", "use a smaller --quantize or add a device"
    ),
    "provider_unavailable": Failure(
        ExitCode.UNAVAILABLE, 503, _SERVER, "An execution provider does not work", "install the wheel that is named"
    ),
    "version_mismatch": Failure(
        ExitCode.REFUSED, 503, _SERVER, "A device speaks another protocol version", "install the same version on both"
    ),
    "not_authorized": Failure(
        ExitCode.REFUSED, 503, _SERVER, "A key is not on the list", "add the key to cluster.toml"
    ),
    "model_error": _model("The model cannot be used", "the file that is named is the place to look"),
    "bad_checkpoint": _model("The model's files are damaged", "download or copy the model again"),
    "model_mismatch": _model("A device has another copy of the model", "copy the same directory to every device"),
    "weights_unavailable": _model(
        "A device could not fetch its layers", "look at the sources that are named, or copy the model to the device"
    ),
    "bad_config_field": _model("The model's config.json is wrong", "compare it with the original"),
    "unsupported_model": _model("The architecture is not supported", "the supported ones are named"),
    "unknown_name": _config("A name is not known", "the nearest known names are in the message"),
    "bad_profile": _config("The profile cannot be used", "measure again with `edgectl profile`"),
    "bad_links": _config("The links file is wrong", "fix the entry that is named"),
    "bad_devices": _config("The list of devices is wrong", "fix the entry that is named"),
    "bad_policy": _config("The policy cannot be used", "train one for this model with `edgectl rl train`"),
    "bad_quality_table": _config("The quality table cannot be used", "measure one with `edgectl rl collect`"),
    "bad_surrogate": _config("The surrogate cannot be used", "fit one with `edgectl rl fit`"),
    "bad_trace": _config("The trace of a channel cannot be used", "fix the field that is named"),
    "bad_plan": _config("The plan file is wrong", "write it again with `edgectl plan --out`"),
    "planner_error": Failure(ExitCode.FAILURE, 500, _SERVER, "No plan could be made", ""),
    "agent_error": Failure(ExitCode.FAILURE, 500, _SERVER, "A device failed", _WATCH),
    "internal_error": Failure(ExitCode.FAILURE, 500, _SERVER, "Something failed inside the server", _BUG),
}


def failure_of(code: str) -> Failure:
    """The row for a code; a code that is not in the table (a newer agent's) is an `internal_error`."""
    return FAILURES.get(code, FAILURES["internal_error"])
