"""How many threads NumPy and torch may use where matrices are small: one. Neither is imported here."""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from types import MappingProxyType

ONE_THREAD: Mapping[str, str] = MappingProxyType(
    {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
)
"""Environment of a process: threads that spin over matrices of a hundred numbers take every core and help nobody."""


def use_one_thread(environment: MutableMapping[str, str] | None = None) -> None:
    """To be called before NumPy is loaded. What a person has set stays."""
    environment = os.environ if environment is None else environment
    for name, threads in ONE_THREAD.items():
        environment.setdefault(name, threads)
