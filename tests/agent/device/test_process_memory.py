"""Memory of this process, from a file of the kernel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from agent.device.process_memory import anonymous_bytes


def test_only_memory_without_a_file_counts(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("VmRSS:\t  300 kB\nRssAnon:\t  200 kB\nRssFile:\t  100 kB\n")
    assert anonymous_bytes(status) == 200 * 1024


@pytest.mark.parametrize("text", ["", "VmRSS:\t 300 kB\n", "RssAnon:\n", "RssAnon: many kB\n", "RssAnon: 3 MB\n"])
def test_what_the_kernel_does_not_say_is_none(tmp_path: Path, text: str) -> None:
    status = tmp_path / "status"
    status.write_text(text)
    assert anonymous_bytes(status) is None
    assert anonymous_bytes(tmp_path / "nowhere") is None


@pytest.mark.skipif(anonymous_bytes() is None, reason="this kernel has no RssAnon")
def test_an_array_that_was_written_is_seen() -> None:
    before = anonymous_bytes()
    held = np.ones(32 << 20, np.uint8)
    after = anonymous_bytes()
    assert before is not None
    assert after is not None
    assert after - before == pytest.approx(held.nbytes, rel=0.2)
