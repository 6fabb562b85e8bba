"""A recorded channel from the file that a person names."""

from __future__ import annotations

from pathlib import Path

from edgectl.given_file import UnreadableFile, read_given
from planner.channel import Channel
from rl.trace import MAX_CHARACTERS, BadTrace, parse_trace


def read_trace(path: Path) -> Channel:
    """Raises BadTrace naming the file and what is wrong with it."""
    try:
        return parse_trace(read_given(path, MAX_CHARACTERS))
    except UnreadableFile as problem:
        raise BadTrace(str(path), str(problem)) from problem
    except BadTrace as problem:
        raise BadTrace(str(path), str(problem).removeprefix("channel trace: ")) from problem
