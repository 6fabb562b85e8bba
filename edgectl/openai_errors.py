"""Errors in OpenAI's shape. They carry no paths and no tracebacks: only our own sentences reach a client."""

from __future__ import annotations

import math

from edgectl.engine import EngineError
from edgectl.failures import failure_of

MAX_MESSAGE_CHARACTERS = 500
"""A message may quote the request; a megabyte of it helps nobody."""

OF_THE_REQUEST = frozenset({"context_length_exceeded"})
"""What an engine rightly says of a request."""


class ApiError(Exception):
    """An HTTP request that is answered with an error; status and type come from the table of failures."""

    def __init__(
        self, code: str, message: str | None = None, param: str | None = None, retry_after_s: float | None = None
    ) -> None:
        failure = failure_of(code)
        self.message = _shortened(message or failure.message)
        super().__init__(self.message)
        self.code = code
        self.param = None if param is None else _shortened(param)
        self.http_status = failure.http_status
        self.kind = failure.kind
        self.retry_after_s = failure.retry_after_s if retry_after_s is None else retry_after_s

    @classmethod
    def of_engine(cls, error: EngineError) -> ApiError:
        """The client's view of an EngineError: the table's sentence, never the detail.

        A code that would blame the request for what is ours (a device without the model: `model_not_found`) becomes
        `agent_error`.
        """
        status = failure_of(error.code).http_status
        is_told = status >= 500 or status == 429 or error.code in OF_THE_REQUEST
        return cls(error.code if is_told else "agent_error", retry_after_s=error.retry_after_s)

    def body(self) -> dict[str, object]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """Retry-After in whole seconds, at least 1, where the table or the engine gives advice (RFC 9110, 10.2.3)."""
        if self.retry_after_s is None:
            return {}
        return {"Retry-After": str(max(1, math.ceil(self.retry_after_s)))}


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_MESSAGE_CHARACTERS else text[: MAX_MESSAGE_CHARACTERS - 1] + "…"
