"""`edgectl generate` over HTTP, against a server whose engine follows a script."""

from __future__ import annotations

import json

import pytest

from edgectl.engine import EngineError
from edgectl.failures import ExitCode
from tests.fakes.command_line import edgectl, edgectl_against
from tests.fakes.fake_engine import MODEL_DIR, FakeEngine, Opening, Script
from tests.fakes.http_server import bundled_tokenizer

TEXT = " the river – and the sea"


def ids_of(text: str) -> list[int]:
    tokenizer = bundled_tokenizer()
    return [token for token in tokenizer.encode(text) if not tokenizer.is_special(token)]


def telling(text: str = TEXT, **script: object) -> FakeEngine:
    tokenizer = bundled_tokenizer()
    eos = tokenizer.stop_ids[0]

    def answer(opening: Opening) -> Script:
        return Script([*ids_of(text), eos], **script)  # type: ignore[arg-type]  # fields of Script

    return FakeEngine(answer)


def test_the_answer_goes_to_stdout_and_nothing_else() -> None:
    result = edgectl_against(telling(), "generate", "Between")
    assert (result.exit_code, result.stdout, result.stderr) == (0, TEXT + "\n", "")


def test_ids_are_those_of_the_engine() -> None:
    expected = ids_of(TEXT)
    result = edgectl_against(telling(), "generate", "Between", "--ids")
    assert result.stdout.splitlines()[-1] == "ids: " + " ".join(map(str, expected))


def test_json_holds_text_ids_reason_and_usage() -> None:
    result = edgectl_against(telling(), "generate", "Between", "--json")
    answer = json.loads(result.stdout)
    expected = ids_of(TEXT)
    assert answer["ids"] == expected
    assert answer["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == len(expected)


def test_parameters_reach_the_engine() -> None:
    engine = telling()
    flags = ("--max-tokens", "3", "--temperature", "0.5", "--top-p", "0.9", "--seed", "11")
    result = edgectl_against(engine, "generate", "Between", *flags, "--json")
    (opening,) = engine.openings
    sampling = opening.sampling
    assert (opening.max_tokens, sampling.temperature, sampling.top_p, sampling.seed) == (3, 0.5, 0.9, 11)
    assert opening.stop_ids == bundled_tokenizer().stop_ids
    assert json.loads(result.stdout)["finish_reason"] == "length"


def test_ignore_eos_leaves_no_stop_ids() -> None:
    engine = telling()
    edgectl_against(engine, "generate", "Between", "--ignore-eos")
    assert engine.openings[0].stop_ids == ()


def test_a_chat_uses_the_template() -> None:
    engine = telling()
    edgectl_against(engine, "generate", "Hello", "--chat")
    tokenizer = bundled_tokenizer()
    assert engine.openings[0].prompt == tuple(tokenizer.encode_chat([{"role": "user", "content": "Hello"}]))


@pytest.mark.parametrize(
    ("code", "exit_code", "message"),
    [
        ("no_agent", ExitCode.UNAVAILABLE, "No device is connected"),
        ("queue_full", ExitCode.UNAVAILABLE, "queue is full"),
        ("out_of_memory", ExitCode.MEMORY, "does not fit"),
    ],
)
def test_a_refusal_ends_with_its_exit_code(code: str, exit_code: ExitCode, message: str) -> None:
    engine = telling()
    engine.refuse = EngineError(code, "details stay in the log")
    result = edgectl_against(engine, "generate", "Between")
    assert (result.exit_code, result.stdout) == (exit_code, "")
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert "\n\nhint: " in result.stderr
    assert "Traceback" not in result.stderr


def test_an_answer_that_breaks_off_is_a_failure_after_what_came() -> None:
    result = edgectl_against(telling(fail_after=3), "generate", "Between")
    assert result.exit_code == ExitCode.SESSION_LOST
    assert result.stdout
    assert "A device that held layers was lost" in result.stderr


def test_a_prompt_that_is_too_long_is_the_callers_mistake() -> None:
    result = edgectl_against(telling(), "generate", "word " * 400)
    assert result.exit_code == ExitCode.FAILURE
    assert "context is 256 tokens" in result.stderr


@pytest.mark.parametrize(
    "flags",
    [("--max-tokens", "0"), ("--temperature", "3"), ("--top-p", "-1"), ("--quantize", "int3"), ("--local",)],
)
def test_impossible_flags_are_usage_errors(flags: tuple[str, ...]) -> None:
    result = edgectl("generate", "Between", *flags)
    assert result.exit_code == ExitCode.USAGE
    assert flags[0] in result.stderr or "--model" in result.stderr


def test_nobody_there() -> None:
    result = edgectl("generate", "Between", "--url", "http://127.0.0.1:9")
    assert result.exit_code == ExitCode.UNAVAILABLE
    assert "nothing answers at http://127.0.0.1:9" in result.stderr
    assert "edgectl serve" in result.stderr


def test_the_model_in_this_process_gives_the_same_tokens_whenever_asked() -> None:
    flags = ("--local", "--model", str(MODEL_DIR), "--max-tokens", "6", "--seed", "3", "--ignore-eos", "--json")
    first, again = edgectl("generate", "The", *flags), edgectl("generate", "The", *flags)
    assert first.exit_code == 0, first.stderr
    assert first.stdout == again.stdout
    assert len(json.loads(first.stdout)["ids"]) == 6
