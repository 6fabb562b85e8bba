from __future__ import annotations

import pytest

from edgectl.engine import EngineError
from edgectl.failures import FAILURES
from edgectl.openai_errors import OF_THE_REQUEST, ApiError


def test_the_shape_is_openais() -> None:
    error = ApiError("invalid_value", "n: expected int", "n")
    assert error.http_status == 400
    assert error.body() == {
        "error": {"message": "n: expected int", "type": "invalid_request_error", "param": "n", "code": "invalid_value"}
    }


@pytest.mark.parametrize("code", sorted(FAILURES))
def test_an_engines_detail_never_reaches_the_client(code: str) -> None:
    error = ApiError.of_engine(EngineError(code, "jetson-2: /var/lib/edge/model.safetensors"))
    assert "jetson" not in str(error.body())
    if code in OF_THE_REQUEST:
        assert (error.code, error.http_status) == (code, 400)
    else:
        assert error.http_status == 429 or error.http_status >= 500


def test_a_request_is_not_quoted_without_end() -> None:
    error = ApiError("unknown_parameter", "unknown parameter: " + "x" * 10**6, "x" * 10**6)
    assert len(str(error.body())) < 1500
    assert error.message.startswith("unknown parameter: xxx")


def test_retry_after_is_whole_seconds_and_the_engine_knows_better() -> None:
    assert ApiError("no_agent").headers() == {"Retry-After": "5"}
    assert ApiError.of_engine(EngineError("no_agent", "", retry_after_s=0.2)).headers() == {"Retry-After": "1"}
    assert ApiError.of_engine(EngineError("no_agent", "", retry_after_s=7.1)).headers() == {"Retry-After": "8"}
    assert ApiError("invalid_value").headers() == {}
