from __future__ import annotations

import pytest

from agent.compute.part import EMBEDDING, HEAD, PartKey, check_part, layer_of, layer_part, part_of, parts_of
from planner.types import LayerRange

DIGEST = "0123456789abcdef" * 4


def test_every_layer_has_one_name() -> None:
    names = [layer_part(layer) for layer in (0, 7, 99, 999, 1000, 9999)]
    assert names == ["layer-000", "layer-007", "layer-099", "layer-999", "layer-1000", "layer-9999"]
    assert [layer_of(name) for name in names] == [0, 7, 99, 999, 1000, 9999]
    assert layer_of(HEAD) is None
    assert layer_of(EMBEDDING) is None


@pytest.mark.parametrize(
    "name", ["", "layer-1", "layer-0001", "layer-10000", "layer-00١", "layer-001\n", "../head", "head/..", "Head", 3]
)
def test_what_is_no_part_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no part of a model"):
        check_part(name)


def test_weights_know_their_part() -> None:
    assert part_of(["model.layers.12.self_attn.q_proj.weight"]) == "layer-012"
    assert part_of(["model.norm.weight"]) == part_of(["lm_head.weight"]) == HEAD
    assert part_of(["model.embed_tokens.weight"]) == HEAD, "tied: the head made from it"


def test_parts_of_a_device_are_its_layers_and_the_ends_it_holds() -> None:
    assert parts_of([LayerRange(0, 2), LayerRange(5, 6)], 8) == ("layer-000", "layer-001", "layer-005", EMBEDDING)
    assert parts_of([LayerRange(6, 8)], 8) == ("layer-006", "layer-007", HEAD)
    assert parts_of([LayerRange(0, 1)], 1) == ("layer-000", HEAD, EMBEDDING)


def test_keys_of_different_renderings_lead_to_different_directories() -> None:
    keys = [
        PartKey(DIGEST, "int4", 32, "fp32"),
        PartKey(DIGEST, "int4", 128, "fp32"),
        PartKey(DIGEST, "int8", 32, "fp32"),
        PartKey(DIGEST, "int4", 32, "fp16"),
        PartKey(DIGEST, "fp16", 0, "fp16"),
        PartKey("f" * 64, "int4", 32, "fp32"),
    ]
    assert len({key.directory for key in keys}) == len(keys)
    assert keys[0].directory == f"{DIGEST}/int4-32-fp32-v1"


def test_block_size_says_nothing_about_float_weights() -> None:
    assert PartKey(DIGEST, "fp32", 32, "fp32") == PartKey(DIGEST, "fp32", 128, "fp32")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("digest", "../../../../etc"),
        ("digest", DIGEST.upper()),
        ("digest", DIGEST + "\n"),
        ("quantization", "int2"),
        ("quantization", "../int4"),
        ("block_size", 0),
        ("block_size", 1 << 40),
        ("block_size", True),
        ("compute", "bf16"),
    ],
)
def test_a_key_from_outside_cannot_lead_elsewhere(field: str, value: object) -> None:
    fields = {"digest": DIGEST, "quantization": "int4", "block_size": 32, "compute": "fp32", field: value}
    with pytest.raises(ValueError, match=field):
        PartKey(**fields)  # type: ignore[arg-type]
