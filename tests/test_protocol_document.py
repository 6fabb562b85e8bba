"""docs/protocol.md says what the code does: fields, limits, tables, reasons and kinds."""

from __future__ import annotations

import importlib
import re
from functools import reduce
from pathlib import Path
from typing import get_args

from agent.errors import RefusalReason
from agent.wire import codec, messages
from agent.wire.hop import ROW_TABLE, STEP_TABLE
from agent.wire.messages import FromAgent, FromSource, ToAgent, ToSource

TEXT = (Path(__file__).parents[1] / "docs" / "protocol.md").read_text(encoding="utf-8")


def table(heading: str) -> list[list[str]]:
    """The cells below the first table row that starts with `heading`."""
    lines = TEXT[TEXT.index(f"\n| {heading} |") + 1 :].splitlines()[2:]
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def test_the_version() -> None:
    assert TEXT.startswith(f"# Protocol, version {messages.PROTOCOL_VERSION}\n")


def test_every_limit_has_its_value() -> None:
    for name, value, _ in table("limit"):
        module, _, path = name.partition(".")
        found = reduce(getattr, path.split("."), importlib.import_module(f"agent.wire.{module}"))
        assert str(found) == value, name


def test_every_limit_of_the_code_is_in_the_document() -> None:
    named = {name for name, *_ in table("limit")}
    for module in ("codec", "messages", "measure_messages", "hop", "transport"):
        names = vars(importlib.import_module(f"agent.wire.{module}"))
        assert {f"{module}.{name}" for name in names if name.startswith("MAX_")} <= named


def test_the_header_fields() -> None:
    assert [row[1] for row in table("#")] == list(codec._FIELDS)


def test_the_numbers_of_kinds_and_codecs() -> None:
    for kind in codec.FrameKind:
        assert f"{int(kind)} {kind.name}" in TEXT
    for codec_id in codec.CodecId:
        assert f"{int(codec_id)} {codec_id.name.lower()}" in TEXT


def test_the_step_table() -> None:
    expected = [["same" if same else "other", order.value, out.value] for (same, order), out in STEP_TABLE.items()]
    assert table("epoch") == expected


def test_the_row_table() -> None:
    expected = [
        [claim.value, "as expected" if as_expected else "other", out.value]
        for (claim, as_expected), out in ROW_TABLE.items()
    ]
    assert table("the frame") == expected


def test_the_reasons() -> None:
    assert [row[0] for row in table("reason")] == [reason.value for reason in RefusalReason]


def test_the_kinds_of_control_messages() -> None:
    directions = [FromAgent, FromSource, ToAgent, ToSource]
    expected = [{kind.__struct_config__.tag for kind in get_args(union)} for union in directions]
    assert [set(re.split(r",\s*", row[1])) for row in table("direction")] == expected
