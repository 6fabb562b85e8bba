from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgectl.engine import MAX_PRIORITY
from edgectl.openai_errors import ApiError
from edgectl.openai_requests import ChatBody, CompletionBody, parse_body

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
COMPLETION: dict[str, Any] = {"model": "m", "prompt": "hi"}


def refused(body: object, kind: type[Any]) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse_body(body if isinstance(body, bytes) else json.dumps(body).encode(), kind)
    assert caught.value.http_status == 400
    return caught.value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 0),
        ("max_tokens", -1),
        ("max_tokens", 1.5),
        ("max_completion_tokens", 0),
        ("temperature", 2.1),
        ("temperature", -0.1),
        ("temperature", "hot"),
        ("top_p", 1.01),
        ("top_k", -1),
        ("n", 0),
        ("n", 9),
        ("n", True),
        ("presence_penalty", 2.5),
        ("frequency_penalty", -2.5),
        ("logit_bias", {"1": 101}),
        ("logit_bias", {str(i): 1 for i in range(301)}),
        ("logit_bias", [1]),
        ("stop", ["a"] * 5),
        ("stop", ""),
        ("stop", 3),
        ("stop", "x" * 1025),
        ("seed", 1.5),
        ("seed", 2**63),
        ("stream", "yes"),
        ("model", 3),
    ],
)
def test_a_value_out_of_range_is_refused_by_name_on_both_endpoints(name: str, value: object) -> None:
    for base, kind in ((CHAT, ChatBody), (COMPLETION, CompletionBody)):
        error = refused({**base, name: value}, kind)
        assert (error.code, error.param) == ("invalid_value", name)
        assert error.message.startswith(f"{name}: ")


@pytest.mark.parametrize(
    ("kind", "name", "value", "code", "param"),
    [
        (ChatBody, "frobnicate", None, "unknown_parameter", "frobnicate"),
        (CompletionBody, "messages", [], "unknown_parameter", "messages"),
        (ChatBody, "echo", True, "unknown_parameter", "echo"),
        (ChatBody, "stream_options", {"x": True}, "unknown_parameter", "stream_options.x"),
        (ChatBody, "tools", [{"type": "function"}], "unsupported_parameter", "tools"),
        (ChatBody, "functions", [{}], "unsupported_parameter", "functions"),
        (ChatBody, "tool_choice", "required", "unsupported_parameter", "tool_choice"),
        (ChatBody, "response_format", {"type": "json_object"}, "unsupported_parameter", "response_format"),
        (ChatBody, "modalities", ["text", "audio"], "unsupported_parameter", "modalities"),
        (ChatBody, "audio", {"voice": "x"}, "unsupported_parameter", "audio"),
        (ChatBody, "reasoning_effort", "high", "unsupported_parameter", "reasoning_effort"),
        (ChatBody, "logprobs", 3, "invalid_value", "logprobs"),
        (ChatBody, "top_logprobs", 21, "invalid_value", "top_logprobs"),
        (CompletionBody, "logprobs", 6, "invalid_value", "logprobs"),
        (CompletionBody, "logprobs", True, "invalid_value", "logprobs"),
        (CompletionBody, "suffix", "end", "unsupported_parameter", "suffix"),
        (CompletionBody, "best_of", 9, "invalid_value", "best_of"),
    ],
)  # fmt: skip
def test_what_one_endpoint_does_not_do_is_refused_by_name(
    kind: type[Any], name: str, value: object, code: str, param: str
) -> None:
    error = refused({**(CHAT if kind is ChatBody else COMPLETION), name: value}, kind)
    assert (error.code, error.param) == (code, param)


@pytest.mark.parametrize(
    ("message", "code", "param"),
    [
        ({"role": "tool", "content": "4"}, "unsupported_parameter", "messages[0].role"),
        ({"role": "wizard", "content": "4"}, "invalid_value", "messages[0].role"),
        ({"content": "4"}, "missing_parameter", "messages[0].role"),
        ({"role": "user"}, "missing_parameter", "messages[0].content"),
        ({"role": "user", "content": None}, "missing_parameter", "messages[0].content"),
        ({"role": "user", "content": 4}, "invalid_value", "messages[0].content"),
        ({"role": "user", "content": "x", "mood": 1}, "unknown_parameter", "messages[0].mood"),
        ({"role": "assistant", "content": "x", "tool_calls": [1]}, "unsupported_parameter", "messages[0].tool_calls"),
        ({"role": "user", "content": [{"type": "text"}]}, "invalid_value", "messages[0].content[0].text"),
        (
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}]},
            "unsupported_parameter",
            "messages[0].content[1].type",
        ),
        ("hi", "invalid_value", "messages[0]"),
    ],
)
def test_messages_are_checked_by_place(message: object, code: str, param: str) -> None:
    error = refused({"model": "m", "messages": [message]}, ChatBody)
    assert (error.code, error.param) == (code, param)


@pytest.mark.parametrize("missing", ["model", "messages"])
def test_a_missing_parameter_is_named(missing: str) -> None:
    error = refused({name: value for name, value in CHAT.items() if name != missing}, ChatBody)
    assert (error.code, error.param) == ("missing_parameter", missing)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"3",
        b"\xff\xfe",
        b'{"model": NaN}',
        b'{"model": "\\ud800"}',
        b"[" * 100_000,
        b'{"a":' * 50_000,
    ],
)
def test_malformed_json_is_refused(data: bytes) -> None:
    assert refused(data, ChatBody).code == "invalid_json"


def test_parameters_that_ask_for_nothing_pass() -> None:
    trivial = {
        "tools": [],
        "tool_choice": "auto",
        "response_format": {"type": "text"},
        "modalities": ["text"],
        "audio": None,
        "user": "me",
        "metadata": {"a": "b"},
        "store": True,
        "stop": None,
        "n": None,
        "service_tier": "auto",
    }
    answered = {"role": "assistant", "content": "x", "refusal": None, "annotations": [], "tool_calls": None}
    body = parse_body(json.dumps({**CHAT, **trivial, "messages": [answered]}).encode(), ChatBody)
    assert body.messages[0].content == "x"
    assert parse_body(json.dumps({**COMPLETION, "suffix": ""}).encode(), CompletionBody).prompt == "hi"


def test_both_limits_may_be_given_when_they_agree() -> None:
    same = parse_body(json.dumps({**CHAT, "max_tokens": 3, "max_completion_tokens": 3}).encode(), ChatBody)
    assert same.token_limit == 3
    differing = parse_body(json.dumps({**CHAT, "max_tokens": 3, "max_completion_tokens": 4}).encode(), ChatBody)
    with pytest.raises(ApiError, match="differ"):
        _ = differing.token_limit


@pytest.mark.parametrize("priority", [MAX_PRIORITY + 1, -MAX_PRIORITY - 1, 0.5, "high", True])
def test_a_priority_is_a_number_of_seconds_within_bounds(priority: object) -> None:
    assert parse_body(json.dumps({**CHAT, "priority": -MAX_PRIORITY}).encode(), ChatBody).priority == -MAX_PRIORITY
    assert refused(json.dumps({**CHAT, "priority": priority}).encode(), ChatBody).param == "priority"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
fields = st.sampled_from([*ChatBody.__struct_fields__, *CompletionBody.__struct_fields__, "tools", "other"])


@given(st.dictionaries(fields, json_values), st.sampled_from([ChatBody, CompletionBody]))
def test_any_object_is_accepted_or_refused_with_400(body: dict[str, object], kind: type[Any]) -> None:
    with suppress(ApiError):  # whose statuses the table of failures fixes
        assert isinstance(parse_body(json.dumps(body).encode(), kind), kind)


@given(st.binary())
def test_any_bytes_are_accepted_or_refused_with_400(data: bytes) -> None:
    assert refused(data, ChatBody).message
