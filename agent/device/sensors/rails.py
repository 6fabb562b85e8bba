"""Which rails of a Jetson make up its whole power, by module; and which module a board's name means.

The total must not be guessed from names: a rail may feed others that are listed beside it. For a module that is not in
the table the rails are reported and no total is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

MODULES_BY_PART = {
    "p3448": "nano",
    "p3310": "tx2",
    "p3489": "tx2",
    "p3636": "tx2",
    "p2888": "agx-xavier",
    "p3668": "xavier-nx",
    "p3701": "agx-orin",
    "p3767-0000": "orin-nx",
    "p3767-0001": "orin-nx",
    "p3767": "orin-nano",
    "p3834": "thor",
}
"""NVIDIA's part number of the module, as in /proc/device-tree/compatible, → module. First match counts."""

MODULES_BY_NAME = (
    ("orin nano", "orin-nano"),
    ("orin nx", "orin-nx"),
    ("agx orin", "agx-orin"),
    ("orin agx", "agx-orin"),
    ("thor", "thor"),
    ("xavier nx", "xavier-nx"),
    ("xavier", "agx-xavier"),
    ("jetson agx", "agx-xavier"),
    ("tx2", "tx2"),
    ("jetson nano", "nano"),
    ("nano", "nano"),
)
"""Words of a board's name → module, the more special first. Release 32 calls the AGX Xavier "Jetson-AGX"."""

TOTAL_RAILS: dict[str, tuple[tuple[str, ...], ...]] = {
    "nano": (("POM_5V_IN",),),
    "tx2": (("VDD_IN",),),
    "xavier-nx": (("VDD_IN",),),
    "orin-nano": (("VDD_IN",),),
    "orin-nx": (("VDD_IN",),),
    "agx-xavier": (("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),),
    "agx-orin": (("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),),
    "thor": (("VIN",), ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0")),
}
"""Module → rails whose sum is the module's input; where there are several ways the first that is complete counts."""


def module_of(board: str) -> str | None:
    """The module that a board's name, or its device tree's `compatible`, speaks of; None for anything else.

    A part number says more than a name: makers of carrier boards write their own.
    """
    text = board.lower()
    for part, module in MODULES_BY_PART.items():
        if part in text:
            return module
    words = " ".join(re.findall(r"[a-z0-9]+", text))
    for name, module in MODULES_BY_NAME:
        if re.search(rf"\b{name}\b", words):
            return module
    return None


def total_power_w(board: str, rails_mw: Sequence[tuple[str, float]]) -> tuple[float | None, str]:
    """(watts of the whole module, "") or (None, why not)."""
    if not rails_mw:
        return None, "no power rail is readable"
    module = module_of(board)
    if module is None:
        known = ", ".join(TOTAL_RAILS)
        return None, f"{board or 'this board'} is in no table of total rails; set board in agent.toml to one of {known}"
    values: dict[str, float] = {}
    for name, value_mw in rails_mw:
        values.setdefault(name, value_mw)
    for names in TOTAL_RAILS[module]:
        if all(name in values for name in names):
            return sum(values[name] for name in names) / 1000.0, ""
    wanted = " or ".join("+".join(names) for names in TOTAL_RAILS[module])
    return None, f"the total of {module} is {wanted}, but the rails are {', '.join(values)}"
