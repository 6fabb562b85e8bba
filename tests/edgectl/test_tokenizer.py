from __future__ import annotations

import json
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import BadCheckpoint
from edgectl.detokenizer import Detokenizer
from edgectl.tokenizer import ChatTemplateError, Tokenizer, byte_alphabet, load_tokenizer
from tests.fakes.fake_engine import MODEL_DIR
from tests.fakes.http_server import bundled_tokenizer
from tests.fakes.llama2_tokenizer import VOCAB, write_llama2_tokenizer


@cache
def llama2() -> Tokenizer:
    with TemporaryDirectory() as directory:
        return load_tokenizer(Path(directory), write_llama2_tokenizer(Path(directory)))


def streamed(tokenizer: Tokenizer, ids: list[int]) -> str:
    """Text of a sequence that begins a text, token by token."""
    detokenizer = Detokenizer()
    begun = [not tokenizer.is_special(token) for token in ids]
    first = begun.index(True) if True in begun else len(ids)
    parts = (
        tokenizer.first_token_bytes(token) if at == first else tokenizer.token_bytes(token)
        for at, token in enumerate(ids)
    )
    return "".join(detokenizer.push(part) for part in parts)


@given(st.text())
def test_any_text_survives_the_bundled_tokenizer_token_by_token(text: str) -> None:
    tokenizer = bundled_tokenizer()
    ids = tokenizer.encode(text)
    if not text:
        assert ids == [0]  # the bos token
    elif not any(name in text for name in ("<s>", "</s>")):
        assert streamed(tokenizer, ids) == text == tokenizer.decode(ids)


@given(st.lists(st.integers(0, 4095)))
def test_any_ids_decode_token_by_token_as_they_do_whole(ids: list[int]) -> None:
    tokenizer = bundled_tokenizer()
    text = streamed(tokenizer, ids)
    assert tokenizer.decode(ids) in (text, text + "\ufffd")


@given(st.text(alphabet="ahelo. é😀"))
def test_a_leading_space_is_dropped_at_the_start_only(text: str) -> None:
    tokenizer = llama2()
    ids = tokenizer.encode(text)
    assert ids[0] == VOCAB["<s>"]
    assert streamed(tokenizer, ids) == text == tokenizer.decode(ids)


@given(st.text(alphabet="ahelo. é😀"), st.text(alphabet="ahelo. é😀", min_size=1))
def test_a_continuation_keeps_its_leading_space(prompt: str, more: str) -> None:
    """What is added to a text is what decoding both together adds: the prefix-offset rule."""
    tokenizer = llama2()
    before, added = tokenizer.encode(prompt), tokenizer.encode(more)[1:]
    if not prompt:
        return
    detokenizer = Detokenizer()
    text = "".join(detokenizer.push(tokenizer.token_bytes(token)) for token in added)
    assert text == tokenizer.decode(before + added)[len(tokenizer.decode(before)) :]


def test_special_tokens_have_a_name_but_no_text() -> None:
    tokenizer = bundled_tokenizer()
    assert tokenizer.is_special(1)
    assert tokenizer.token_bytes(1) == b""
    assert tokenizer.token_name(1) == "</s>"
    assert tokenizer.token_name(10**6) == ""
    assert tokenizer.token_bytes(10**6) == b""


def test_byte_alphabet_is_a_bijection_on_all_bytes() -> None:
    assert sorted(byte_alphabet().values()) == list(range(256))
    assert byte_alphabet()["Ġ"] == 0x20


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ({"eos_token_id": 7}, {"eos_token_id": 9}, (1, 7)),
        ({"eos_token_id": [5, 7]}, {"eos_token_id": 9}, (1, 5, 7)),
        ({}, {"eos_token_id": 9}, (1, 9)),
        (None, {"eos_token_id": [9, 4096]}, (1, 9)),
        (None, {}, (1,)),
    ],
)
def test_eos_ids_come_from_generation_config_then_config_and_the_tokenizer(
    tmp_path: Path, generation: dict[str, object] | None, config: dict[str, object], expected: tuple[int, ...]
) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODEL_DIR / name, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    assert load_tokenizer(tmp_path, 4096).stop_ids == expected


def test_a_chat_goes_through_the_models_template() -> None:
    tokenizer = bundled_tokenizer()
    ids = tokenizer.encode_chat([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}])
    assert tokenizer.decode(ids) == "Be brief.\nHi\n"


def test_a_template_in_a_file_of_its_own_and_one_that_refuses(tmp_path: Path) -> None:
    size = write_llama2_tokenizer(tmp_path)
    assert not load_tokenizer(tmp_path, size).has_chat_template
    template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}{{ bos_token }}a"
    )
    (tmp_path / "chat_template.jinja").write_text(template)
    tokenizer = load_tokenizer(tmp_path, size)
    ids = tokenizer.encode_chat([{"role": "user", "content": "x"}])
    assert ids[0] == VOCAB["<s>"]
    assert ids.count(VOCAB["<s>"]) == 1
    with pytest.raises(ChatTemplateError, match="no system role"):
        tokenizer.encode_chat([{"role": "system", "content": "x"}])


def test_ids_the_model_has_no_row_for_are_refused() -> None:
    small = load_tokenizer(MODEL_DIR, vocab_size=40)
    with pytest.raises(ValueError, match="ids 0 to 39"):
        small.encode("zebra")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", None),
        ("tokenizer.json", "{"),
        ("config.json", "{"),
        ("generation_config.json", '{"eos_token_id": "x"}'),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, content: str | None) -> None:
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODEL_DIR / file, tmp_path)
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_text(content)
    with pytest.raises(BadCheckpoint, match=name):
        load_tokenizer(tmp_path, 4096)


def test_neither_importing_nor_loading_imports_torch() -> None:
    code = (
        "import sys; from pathlib import Path; import edgectl.tokenizer as t; assert 'transformers' not in sys.modules;"
        f"t.load_tokenizer(Path({str(MODEL_DIR)!r}), 4096).encode_chat([dict(role='user', content='x')]);"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=MODEL_DIR.parents[2])
