"""`generate --local` answers through the same steps as the HTTP server, and refuses the same things."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from edgectl.client import Delta
from edgectl.failures import ExitCode
from edgectl.local_answer import answer_here
from edgectl.output import CommandFailure
from edgectl.planning import ServingOptions
from tests.fakes.fake_engine import MODEL_DIR
from tests.fakes.http_server import bundled_tokenizer


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))


def answer(body: dict[str, object], *, chat: bool = False, options: ServingOptions | None = None) -> list[Delta]:
    shown: list[Delta] = []
    options = options or ServingOptions(context=64)
    asyncio.run(answer_here(str(MODEL_DIR), options, body, chat=chat, show=shown.append))
    return shown


def test_text_ids_reason_and_usage_agree() -> None:
    shown = answer({"prompt": "The river", "max_tokens": 5, "seed": 1, "ignore_eos": True, "temperature": None})
    ids = [token for delta in shown for token in delta.token_ids]
    assert len(ids) == 5
    assert "".join(delta.text for delta in shown) == bundled_tokenizer().decode(ids)
    assert shown[-1].finish_reason == "length"
    assert shown[-1].usage is not None
    assert shown[-1].usage["completion_tokens"] == 5


def test_a_chat_has_the_rest_of_the_context() -> None:
    shown = answer({"messages": [{"role": "user", "content": "Hi"}], "seed": 1, "ignore_eos": True}, chat=True)
    assert shown[-1].usage is not None
    assert shown[-1].usage["total_tokens"] == 64


@pytest.mark.parametrize(
    ("body", "options", "exit_code", "message"),
    [
        ({"prompt": "x " * 100}, None, ExitCode.FAILURE, "context is 64 tokens"),
        ({"prompt": "x", "temperature": 9}, None, ExitCode.FAILURE, "temperature"),
        ({"prompt": "x"}, ServingOptions(context=1 << 20), ExitCode.USAGE, "outside 3 to 2048"),
        ({"prompt": "x"}, ServingOptions(context=64, quantization="fp16"), ExitCode.USAGE, "fp16"),
    ],
)
def test_refusals(body: dict[str, object], options: ServingOptions | None, exit_code: ExitCode, message: str) -> None:
    with pytest.raises(CommandFailure, match=message) as refused:
        answer(body, options=options)
    assert refused.value.exit_code == exit_code
