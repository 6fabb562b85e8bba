"""Model directories: single file, index, links of a Hugging Face cache, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.compute.checkpoint import Checkpoint, find_model, weight_files
from agent.errors import BadCheckpoint, ModelNotFound
from planner.errors import BadConfigField, UnsupportedModel

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 8,
    "intermediate_size": 16,
    "max_position_embeddings": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "vocab_size": 10,
}
NORM, DOWN = "model.norm.weight", "model.layers.0.mlp.down_proj.weight"
BUNDLED = Path(__file__).parents[3] / "examples" / "models" / "wiki-32l"


def write_weights(path: Path, **tensors: Any) -> None:
    """fp32 tensors only; `__` in a name stands for a dot."""
    header, data = {}, b""
    for name, values in tensors.items():
        tensor = np.asarray(values, np.float32)
        offsets = [len(data), len(data) + tensor.nbytes]
        header[name.replace("__", ".")] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": offsets}
        data += tensor.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A directory with a config and two shards behind an index."""
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG))
    write_weights(path / "model-00001-of-00002.safetensors", model__norm__weight=np.arange(8))
    write_weights(path / "model-00002-of-00002.safetensors", model__layers__0__mlp__down_proj__weight=np.ones((8, 16)))
    write_index(path, {NORM: "model-00001-of-00002.safetensors", DOWN: "model-00002-of-00002.safetensors"})
    return path


def write_index(path: Path, weight_map: object) -> None:
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_the_bundled_model_opens() -> None:
    checkpoint = Checkpoint.open(BUNDLED)
    spec = checkpoint.spec
    embedding = checkpoint.tensor("model.embed_tokens.weight", (spec.vocab_size, spec.hidden_size))
    assert embedding.dtype == np.float16
    assert np.isfinite(embedding).all()
    assert checkpoint.generation_config["eos_token_id"] == 1
    assert not checkpoint.has("lm_head.weight")
    assert len(checkpoint.names) == 32 * 9 + 2


def test_shards_behind_an_index(model: Path) -> None:
    checkpoint = Checkpoint.open(model)
    assert checkpoint.names == (NORM, DOWN)
    np.testing.assert_array_equal(checkpoint.tensor(NORM, [8]), np.arange(8))
    assert checkpoint.tensor(DOWN).shape == (8, 16)
    assert checkpoint.generation_config == {}
    assert checkpoint.spec.hidden_size == 8


def test_a_single_file_comes_before_an_index(model: Path) -> None:
    write_weights(model / "model.safetensors", model__norm__weight=np.zeros(8))
    assert Checkpoint.open(model).names == (NORM,)
    assert weight_files(model) == (model / "model.safetensors",)


def test_a_hugging_face_cache_snapshot_is_made_of_links(model: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0123abcd"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(model.iterdir())):
        file.rename(blobs / str(number))
        (snapshot / file.name).symlink_to(Path("../../blobs") / str(number))
    np.testing.assert_array_equal(Checkpoint.open(snapshot).tensor(NORM), np.arange(8))


def test_missing_tensor_and_wrong_shape_are_named(model: Path) -> None:
    checkpoint = Checkpoint.open(model)
    with pytest.raises(BadCheckpoint, match=r"tensor lm_head\.weight is missing"):
        checkpoint.tensor("lm_head.weight")
    with pytest.raises(BadCheckpoint) as refused:
        checkpoint.tensor(DOWN, (16, 8))
    expected = f"{model}/model-00002-of-00002.safetensors: tensor {DOWN} has shape [8, 16], expected [16, 8]"
    assert str(refused.value) == expected


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt", "model.ckpt"])
def test_pickles_are_refused_with_the_way_out(model: Path, name: str) -> None:
    for file in model.glob("*.safetensors*"):
        file.unlink()
    (model / name).write_bytes(b"\x80\x04.")
    with pytest.raises(BadCheckpoint, match=r"pickle checkpoints.*refused.*save_pretrained"):
        Checkpoint.open(model)


def test_missing_files_are_named(model: Path) -> None:
    (model / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(BadCheckpoint, match=r"model-00002-of-00002\.safetensors: cannot be read: No such file"):
        Checkpoint.open(model)
    (model / "model.safetensors.index.json").unlink()
    with pytest.raises(BadCheckpoint, match=r"neither model\.safetensors nor model\.safetensors\.index\.json"):
        Checkpoint.open(model)
    (model / "config.json").unlink()
    with pytest.raises(BadCheckpoint, match=r"config\.json: cannot be read: No such file"):
        Checkpoint.open(model)


@pytest.mark.parametrize(
    "name",
    [
        "../model.safetensors",
        "/etc/model.safetensors",
        "a/b.safetensors",
        "..",
        ".hidden.safetensors",
        "model.bin",
        "a\x00.safetensors",
        "a.safetensors\n",
        "",
        7,
        None,
    ],
)
def test_an_index_cannot_lead_elsewhere(model: Path, name: object) -> None:
    write_index(model, {NORM: name})
    with pytest.raises(BadCheckpoint, match="no plain name of a safetensors file"):
        Checkpoint.open(model)


@pytest.mark.parametrize("weight_map", [None, {}, [NORM]])
def test_an_index_without_a_map_is_refused(model: Path, weight_map: object) -> None:
    write_index(model, weight_map)
    with pytest.raises(BadCheckpoint, match="weight_map is missing or empty"):
        Checkpoint.open(model)


def test_an_index_that_names_the_wrong_shard_is_refused(model: Path) -> None:
    write_index(model, {NORM: "model-00002-of-00002.safetensors"})
    with pytest.raises(BadCheckpoint, match=f"tensor {NORM} is in model-00002-of-00002.safetensors, which does not"):
        Checkpoint.open(model)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\udcff", "[" * 100_000])
def test_config_that_is_no_object_is_refused(model: Path, text: str) -> None:
    (model / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(BadCheckpoint, match=r"config\.json: (no valid JSON|must hold a JSON object)"):
        Checkpoint.open(model)


def test_what_config_json_says_is_judged_by_the_planner(model: Path) -> None:
    (model / "config.json").write_text(json.dumps({**CONFIG, "vocab_size": -1}))
    with pytest.raises(BadConfigField, match="vocab_size"):
        Checkpoint.open(model)
    (model / "config.json").write_text(json.dumps({**CONFIG, "architectures": ["GPT2LMHeadModel"]}))
    with pytest.raises(UnsupportedModel, match="GPT2LMHeadModel"):
        Checkpoint.open(model)


def test_models_are_found_below_their_directory(model: Path, tmp_path: Path) -> None:
    owned = tmp_path / "owner" / "name-1.5"
    owned.mkdir(parents=True)
    (tmp_path / "alias").symlink_to(model)
    assert find_model(tmp_path, "model") == model.resolve()
    assert find_model(tmp_path, "owner/name-1.5") == owned.resolve()
    assert find_model(tmp_path, "alias") == model.resolve()
    (tmp_path / "elsewhere").symlink_to(tmp_path)
    assert find_model(tmp_path / "elsewhere", "model") == model.resolve()


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../model", "/etc", "a/../model", "a..b", "a/b/c", "model/", "model\n", "-model", "a b", "a" * 97],
)
def test_names_that_are_none_are_refused(model: Path, name: str) -> None:
    with pytest.raises(ModelNotFound, match="is no model name"):
        find_model(model.parent, name)


def test_a_link_out_of_the_directory_is_refused(model: Path, tmp_path: Path) -> None:
    models_dir = tmp_path / "models"
    models_dir.mkdir()
    (models_dir / "outside").symlink_to(model)
    with pytest.raises(ModelNotFound, match="model outside leads outside"):
        find_model(models_dir, "outside")


def test_an_unknown_model_is_told_with_those_there_are(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound) as refused:
        find_model(tmp_path, "other")
    assert str(refused.value) == f"no model other in {tmp_path}; there are: model"
    with pytest.raises(ModelNotFound, match="there is none"):
        find_model(tmp_path / "nowhere", "other")
    for number in range(12):
        (tmp_path / f"m{number:02}").mkdir()
        os.link(model / "config.json", tmp_path / f"m{number:02}" / "config.json")
    with pytest.raises(ModelNotFound, match=r"there are: m00, .*, m09, …$"):
        find_model(tmp_path, "other")
