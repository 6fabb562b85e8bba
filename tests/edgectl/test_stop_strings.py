from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from edgectl.stop_strings import StopStrings

words = st.text(alphabet="ab", min_size=1, max_size=5)
patterns = st.lists(words, max_size=4)
pieces = st.lists(st.text(alphabet="abc", max_size=6), max_size=12)


def cut(text: str, stops: list[str]) -> str | None:
    """The oracle: the text before the stop string that is complete first, the longest of several; None without one."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))]
    return None


@given(pieces, patterns)
@example(["aab", "aab"], ["aabaab"])
@example(["abab", "aba"], ["ababa", "b"])
def test_the_text_is_cut_at_the_first_stop_string_wherever_the_pieces_end(texts: list[str], stops: list[str]) -> None:
    scanner = StopStrings(stops)
    sent = "".join(scanner.push(text) for text in texts)
    expected = cut("".join(texts), stops)
    assert scanner.found == (expected is not None)
    sent += scanner.flush()
    assert sent == ("".join(texts) if expected is None else expected)


@given(pieces, patterns)
def test_nothing_that_may_become_a_stop_string_is_sent_early_and_nothing_else_is_held(
    texts: list[str], stops: list[str]
) -> None:
    scanner = StopStrings(stops)
    sent = seen = ""
    for text in texts:
        sent += scanner.push(text)
        seen += text
        if scanner.found:
            break
        held = seen[len(sent) :]
        beginnings = [
            seen[-length:] for stop in stops for length in range(1, len(stop)) if seen.endswith(stop[:length])
        ]
        assert held == max(beginnings, key=len, default="")


def test_after_a_match_nothing_comes_any_more() -> None:
    scanner = StopStrings(["\n\n"])
    assert scanner.push("one\n") == "one"
    assert scanner.push("\ntwo") == ""
    assert scanner.found
    assert scanner.push("three") == ""
    assert scanner.flush() == ""


def test_a_text_without_stop_strings_passes_at_once() -> None:
    scanner = StopStrings([])
    assert scanner.push("anything") == "anything"
    assert not scanner.found
