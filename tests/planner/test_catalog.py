"""The catalogue against parameter counts that are published, and against the data sheets' own sense."""

from __future__ import annotations

import pytest

from planner.catalog import MOST_DEVICES, device_names, find_device, find_model, model_names, parse_device_list
from planner.errors import BadDevices, UnknownName
from planner.memory import head_bytes, layer_weight_bytes
from planner.model_spec import ModelSpec

PROMISED_MODELS = (
    "llama2-7b llama2-13b llama2-70b llama3-8b llama3-70b mistral-7b aya-23-8b openchat-8b prem-1b tinyllama-1.1b "
    "qwen2.5-0.5b qwen2.5-1.5b qwen2.5-3b qwen2.5-7b qwen2.5-14b qwen2.5-32b qwen2.5-72b "
    "qwen3-0.6b qwen3-1.7b qwen3-4b qwen3-8b qwen3-14b qwen3-32b"
)
PROMISED_DEVICES = (
    "jetson-nano orin-nano-8gb orin-nano-8gb-super orin-nx-8gb orin-nx-16gb agx-orin-32gb agx-orin-64gb xavier-nx "
    "agx-xavier thor-128gb rtx-3060 rtx-3070 rtx-3080 rtx-3090 rtx-4070 rtx-4080 rtx-4090 rtx-5090 "
    "a100-40gb a100-80gb h100-80gb pc-ddr4 pc-ddr5 raspberry-pi-5-8gb"
)


def parameters(spec: ModelSpec) -> float:
    """All weights; the embedding counts once where it is the head too."""
    fp32 = spec.num_layers * layer_weight_bytes(spec, "fp32", 128) + head_bytes(spec, "fp32", 128)
    embedding = 0 if spec.tied_embeddings else spec.vocab_size * spec.hidden_size
    return fp32 / 4 + embedding


# Published: model cards and reports, exact where they are.
@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("llama2-7b", 6_738_415_616),
        ("llama2-13b", 13_015_864_320),
        ("llama2-70b", 68_976_648_192),
        ("llama3-8b", 8_030_261_248),
        ("llama3-70b", 70_553_706_496),
        ("llama3.1-8b", 8_030_261_248),
        ("llama3.2-1b", 1_235_814_400),
        ("llama3.2-3b", 3_212_749_824),
        ("mistral-7b", 7_248_023_552),
        ("aya-23-8b", 8.03e9),
        ("openchat-8b", 8_030_261_248),
        ("tinyllama-1.1b", 1_100_048_384),
        ("prem-1b", 1.1e9),
        ("qwen2.5-0.5b", 494_032_768),
        ("qwen2.5-1.5b", 1_543_714_304),
        ("qwen2.5-3b", 3_085_938_688),
        ("qwen2.5-7b", 7_615_616_512),
        ("qwen2.5-14b", 14_770_033_664),
        ("qwen2.5-32b", 32_763_876_352),
        ("qwen2.5-72b", 72_706_203_648),
        ("qwen3-0.6b", 596_049_920),
        ("qwen3-1.7b", 1_720_574_976),
        ("qwen3-4b", 4_022_468_096),
        ("qwen3-8b", 8_190_735_360),
        ("qwen3-14b", 14_768_307_200),
        ("qwen3-32b", 32_762_123_264),
    ],
)
def test_parameters_as_published(name: str, published: float) -> None:
    tolerance = 0 if isinstance(published, int) else 0.01
    assert parameters(find_model(name).spec) == pytest.approx(published, rel=tolerance)


def test_every_promised_name_is_there() -> None:
    assert set(PROMISED_MODELS.split()) <= set(model_names())
    assert set(PROMISED_DEVICES.split()) <= set(device_names())
    for name in model_names():
        model = find_model(name)
        assert model.name == name
        assert model.runnable or model.note


def test_what_we_cannot_compute_is_said() -> None:
    aya = find_model("aya-23-8b")
    assert not aya.runnable
    assert "Cohere" in aya.note
    assert find_model("mistral-7b").spec.sliding_windows == (None,) * 32


def test_names_in_any_case() -> None:
    assert find_model("Llama2-7B") == find_model("llama2-7b")
    assert find_device("RTX-3090") == find_device("rtx-3090")


@pytest.mark.parametrize(
    ("name", "near"), [("llama2-7", "llama2-7b"), ("llama-2-13b", "llama2-13b"), ("qwen25-7b", "qwen2.5-7b")]
)
def test_unknown_models_get_near_names(name: str, near: str) -> None:
    with pytest.raises(UnknownName) as caught:
        find_model(name)
    assert near in caught.value.near


def test_unknown_boards_get_near_names() -> None:
    with pytest.raises(UnknownName, match=r"unknown device 'agx_orin_32'; did you mean agx-orin-32gb"):
        find_device("agx_orin_32")
    with pytest.raises(UnknownName, match=r"known: .*raspberry-pi-5-8gb"):
        find_device("zzzzzzzz")


@pytest.mark.parametrize("name", device_names())
def test_data_sheets_make_sense(name: str) -> None:
    device = find_device(name)
    assert 0.5 <= device.usable_fraction < 1
    assert 0 < device.idle_w < device.load_w < 1000
    assert 10 <= device.memory_gb_per_s <= 4000
    assert 0 < device.fp32_tflops <= device.fp16_tflops
    assert device.memory_bytes < device.memory_gib * (1 << 30)


def test_device_lists() -> None:
    found = parse_device_list(" agx-orin-32gb*2 , RTX-3090,agx-orin-32gb")
    assert [name for name, _ in found] == ["agx-orin-32gb-0", "agx-orin-32gb-1", "rtx-3090", "agx-orin-32gb-2"]
    assert found[2][1] == find_device("rtx-3090")
    assert len(parse_device_list("agx-orin-32gb*12,orin-nx-16gb*2,rtx-3090")) == 15


@pytest.mark.parametrize(
    "text",
    [
        "",
        ",",
        "rtx-3090,",
        "*3",
        "rtx-3090*",
        "rtx-3090*0",
        "rtx-3090*-1",
        "rtx-3090*2*2",
        "rtx-3090*1e3",
        "rtx-3090*9999999999999999",
        "rtx-3090*²",
        "rtx-3090*600,rtx-4090*600",
    ],
)
def test_bad_device_lists_are_refused(text: str) -> None:
    with pytest.raises(BadDevices, match="devices:"):
        parse_device_list(text)


def test_unknown_devices_in_a_list_get_near_names() -> None:
    with pytest.raises(UnknownName, match="did you mean rtx-3090"):
        parse_device_list("agx-orin-32gb,rtx-309*2")
    assert len(parse_device_list(f"rtx-3090*{MOST_DEVICES}")) == MOST_DEVICES
