"""What a person may hand over by mistake, and what is said of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgectl.given_file import UnreadableFile, read_given

MEBIBYTE = 1 << 20


def test_text_as_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes("é\r\n".encode() + b"x" * (MEBIBYTE - 4))
    text = read_given(path, MEBIBYTE)
    assert text.startswith("é\r\nx")
    assert len(text) == MEBIBYTE - 1


@pytest.mark.parametrize(
    ("data", "words"), [(b"x" * (MEBIBYTE + 1), "^more than 1 MiB$"), (b"ab\xff", "^no UTF-8 at byte 2$")]
)
def test_what_is_no_text(data: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(data)
    with pytest.raises(UnreadableFile, match=words):
        read_given(path, MEBIBYTE)


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match=r"^Is a directory$"):
        read_given(tmp_path, MEBIBYTE)
    with pytest.raises(UnreadableFile, match=r"^No such file or directory$"):
        read_given(tmp_path / "absent", MEBIBYTE)


def test_an_endless_file_is_not_read_to_its_end() -> None:
    with pytest.raises(UnreadableFile, match="more than 1 MiB"):
        read_given(Path("/dev/zero"), MEBIBYTE)
