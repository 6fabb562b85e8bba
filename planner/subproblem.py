"""A problem with fewer devices. Classes keep their numbers, so segments of it are segments of the whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from planner.problem import Problem


def limited(problem: Problem, at_most: Sequence[int]) -> Problem:
    """The problem with at most so many devices per class; a class of none stays, without memory for anything.

    Raises ValueError for a source that may not be used.
    """
    if at_most[problem.source] < 1:
        raise ValueError(f"the source, class {problem.source}, is always used; at most {tuple(at_most)}")
    allowed = np.minimum(at_most, problem.counts)
    return replace(
        problem,
        counts=tuple(int(each) for each in np.maximum(allowed, 1)),
        memory_bytes=np.where(allowed > 0, problem.memory_bytes, -1),
    )
