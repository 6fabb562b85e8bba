from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgectl.openai_api import Ask, read_chat, read_completion
from edgectl.openai_errors import ApiError
from edgectl.openai_requests import ChatBody, CompletionBody
from edgectl.tokenizer import load_tokenizer
from tests.fakes.http_server import bundled_tokenizer
from tests.fakes.llama2_tokenizer import write_llama2_tokenizer

CONTEXT = 64


def completion(**fields: Any) -> Ask:
    body = msgspec.convert({"model": "m", "prompt": "hello", **fields}, CompletionBody)
    seeds = count(1000, 1000)
    return read_completion(body, bundled_tokenizer(), CONTEXT, lambda: next(seeds))


def chat(*messages: dict[str, Any], **fields: Any) -> Ask:
    talk = list(messages) or [{"role": "user", "content": "hello"}]
    body = msgspec.convert({"model": "m", "messages": talk, **fields}, ChatBody)
    return read_chat(body, bundled_tokenizer(), CONTEXT, lambda: 1000)


def text(ask: Ask, index: int = 0) -> str:
    return bundled_tokenizer().decode(ask.choices[index].prompt)


def refused(param: str, code: str, make: Any, *args: Any, **fields: Any) -> str:
    with pytest.raises(ApiError) as caught:
        make(*args, **fields)
    assert (caught.value.param, caught.value.code, caught.value.http_status) == (param, code, 400)
    return caught.value.message


def test_a_prompt_may_come_in_four_forms() -> None:
    ids = bundled_tokenizer().encode("hello")
    assert completion().choices[0].prompt == tuple(ids)
    assert completion(prompt=ids).choices == completion().choices
    assert [c.prompt for c in completion(prompt=["hello", "hello"]).choices] == [tuple(ids)] * 2
    assert [c.prompt for c in completion(prompt=[ids, ids[:1]]).choices] == [tuple(ids), tuple(ids[:1])]
    assert completion(prompt="").choices[0].prompt == (0,)


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        (3, "prompt"),
        (None, "prompt"),
        ([], "prompt"),
        ({}, "prompt"),
        ([[]], "prompt[0]"),
        ([4096], "prompt[0]"),
        ([0, -1], "prompt[1]"),
        ([0, "a"], "prompt[1]"),
        ([True], "prompt[0]"),
        (["a", 3], "prompt[1]"),
        ([[0], [1.5]], "prompt[1][0]"),
        (["a"] * 65, "prompt"),
    ],
)
def test_other_forms_are_refused_by_place(prompt: object, param: str) -> None:
    refused(param, "invalid_value", completion, prompt=prompt)


def test_choices_are_numbered_across_a_batch_and_answer_like_single_prompts() -> None:
    batch = completion(prompt=["one", "two"], n=2, seed=7)
    assert [choice.index for choice in batch.choices] == [0, 1, 2, 3]
    assert [choice.sampling.seed for choice in batch.choices] == [7, 8, 7, 8]
    single = completion(prompt="two", n=2, seed=7)
    assert [c.sampling for c in batch.choices[2:]] == [c.sampling for c in single.choices]
    assert batch.prompt_tokens == completion(prompt="one").prompt_tokens + single.prompt_tokens


def test_without_a_seed_each_prompt_draws_one() -> None:
    assert [c.sampling.seed for c in completion(prompt=["a", "b"], n=2).choices] == [1000, 1001, 2000, 2001]
    assert completion(seed=-1).choices[0].sampling.seed == 2**64 - 1


def test_the_answer_fits_the_context() -> None:
    assert completion().choices[0].max_tokens == 16
    assert completion(prompt=[5] * 60).choices[0].max_tokens == 4
    assert completion(prompt=[5] * 60, max_tokens=4).choices[0].max_tokens == 4
    assert chat().choices[0].max_tokens == CONTEXT - chat().prompt_tokens
    assert chat(max_completion_tokens=5).choices[0].max_tokens == 5


def test_what_does_not_fit_is_refused_with_the_numbers() -> None:
    message = refused("prompt", "context_length_exceeded", completion, prompt=[5] * 64)
    assert "64" in message
    message = refused("prompt", "context_length_exceeded", completion, prompt=[5] * 60, max_tokens=5)
    assert all(number in message for number in ("64", "60", "5"))
    refused("prompt[1]", "context_length_exceeded", completion, prompt=[[5], [5] * 100])
    refused("messages", "context_length_exceeded", chat, {"role": "user", "content": "long " * 100})


def test_sampling_parameters_arrive() -> None:
    fields = {"temperature": 0, "top_p": 0.5, "top_k": 7, "presence_penalty": 1, "frequency_penalty": -1}
    sampling = completion(**fields, logprobs=3, logit_bias={"9": 1, "2": -100}).choices[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0, 0.5, 7)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (1, -1)
    assert (sampling.logprobs, sampling.top_logprobs) == (True, 3)
    assert sampling.logit_bias == ((2, -100.0), (9, 1.0))
    plain = completion().choices[0].sampling
    assert (plain.temperature, plain.top_p, plain.top_k, plain.logprobs) == (1.0, 1.0, 0, False)
    assert chat(logprobs=True, top_logprobs=20).choices[0].sampling.top_logprobs == 20


@pytest.mark.parametrize("key", ["4096", "-1", "x", "", "1.0", "٣", "9" * 5000])
def test_a_bias_on_no_token_is_refused(key: str) -> None:
    refused("logit_bias", "invalid_value", completion, logit_bias={key: 1})


def test_combinations_that_cannot_be_honoured_are_refused() -> None:
    assert "echo" in refused("logprobs", "unsupported_parameter", completion, echo=True, logprobs=0)
    refused("best_of", "unsupported_parameter", completion, best_of=2)
    assert len(completion(best_of=2, n=2).choices) == 2
    refused("top_logprobs", "invalid_value", chat, top_logprobs=1)
    refused("stream_options", "invalid_value", chat, stream_options={"include_usage": True})
    assert chat(stream=True, stream_options={"include_usage": True}).include_usage


def test_echo_repeats_the_prompt_as_text() -> None:
    assert completion(echo=True).choices[0].echo == "hello"
    assert completion(echo=True, prompt=bundled_tokenizer().encode("hello")).choices[0].echo == "hello"
    assert completion().choices[0].echo == ""


def test_a_completion_goes_on_with_its_prompt_and_a_chat_begins() -> None:
    assert not completion().choices[0].begins_text
    assert completion(prompt="").choices[0].begins_text
    assert chat().choices[0].begins_text


def test_messages_go_through_the_template() -> None:
    parts = {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
    assert text(chat({"role": "developer", "content": "x", "name": "n"}, parts)) == "x\na\nb\n"
    assert chat(n=3, seed=5).prompt_tokens == chat().prompt_tokens
    assert [c.sampling.seed for c in chat(n=3, seed=5).choices] == [5, 6, 7]


def test_a_model_without_a_chat_template_says_so(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tmp_path, write_llama2_tokenizer(tmp_path))
    body = msgspec.convert({"model": "m", "messages": [{"role": "user", "content": "x"}]}, ChatBody)
    with pytest.raises(ApiError, match="no chat template") as caught:
        read_chat(body, tokenizer, CONTEXT, lambda: 0)
    assert (caught.value.http_status, caught.value.code) == (400, "no_chat_template")


def test_a_template_that_refuses_is_the_clients_error(tmp_path: Path) -> None:
    size = write_llama2_tokenizer(tmp_path, chat_template="{{ raise_exception('roles must alternate') }}")
    body = msgspec.convert({"model": "m", "messages": [{"role": "user", "content": "x"}]}, ChatBody)
    with pytest.raises(ApiError, match="roles must alternate"):
        read_chat(body, load_tokenizer(tmp_path, size), CONTEXT, lambda: 0)
