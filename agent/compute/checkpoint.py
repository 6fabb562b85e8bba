"""A model directory in Hugging Face's layout: what it is, and its tensors as views over memory maps.

Weights are safetensors only. Reading a tensor touches only its own pages, so a device pays for the layers it holds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from agent.compute.safetensors_file import SafetensorsFile
from agent.compute.weights import MadeFromTensors
from agent.errors import BadCheckpoint, ModelNotFound
from planner.model_spec import ModelSpec, parse_config

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

MAX_JSON_BYTES = 100_000_000
"""As for a safetensors header; the largest index of a public model is about ten megabytes."""

_PICKLES = ("*.bin", "*.pth", "*.pt", "*.ckpt")

_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?")
_SHARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}\.safetensors")
_MOST_NAMES_LISTED = 10


class Checkpoint(MadeFromTensors):
    """Config, generation config and tensors of one model; satisfies `weights.Weights`."""

    def __init__(self, path: Path, config: Mapping[str, Any], generation_config: Mapping[str, Any]) -> None:
        """Use `open`."""
        self.path = path
        self.config = config
        self.generation_config = generation_config
        self.spec: ModelSpec = parse_config(config)
        self._files = _files_by_tensor(path)

    @classmethod
    def open(cls, path: Path) -> Checkpoint:
        """Read and check everything but the weights themselves.

        Raises BadCheckpoint naming the file, and planner's BadConfigField and UnsupportedModel for config.json.
        """
        generation = path / "generation_config.json"
        return cls(path, read_json(path / "config.json"), read_json(generation) if generation.exists() else {})

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._files)

    def has(self, name: str) -> bool:
        return name in self._files

    def tensor(self, name: str, shape: Sequence[int] | None = None) -> NDArray[Any]:
        """Read-only view over the memory map in the checkpoint's own type: fp32, fp16 or bf16 (ml_dtypes).

        Raises BadCheckpoint when the tensor is missing, no float, or not of the expected `shape`.
        """
        file = self._files.get(name)
        if file is None:
            raise BadCheckpoint(f"{self.path}: tensor {name} is missing from the checkpoint")
        view = file.tensor(name)
        if shape is not None and view.shape != tuple(shape):
            raise BadCheckpoint(f"{file.path}: tensor {name} has shape {list(view.shape)}, expected {list(shape)}")
        return view


def find_model(models_dir: Path, name: str) -> Path:
    """The real directory of model `name`, which may be `owner/name`, below `models_dir`.

    Raises ModelNotFound for a name that is none, leads outside, or is not there. Files in the directory may be links
    (a Hugging Face cache is made of them); the directory itself must not lead outside.
    """
    if not _MODEL_NAME.fullmatch(name) or ".." in name:
        raise ModelNotFound(f"{name!r} is no model name: letters, digits, '.', '_' and '-', at most one '/'")
    root = models_dir.resolve()
    path = (root / name).resolve()
    if not path.is_relative_to(root):
        raise ModelNotFound(f"model {name} leads outside {models_dir}; copy it there or mount it")
    if not path.is_dir():
        there = sorted(_model_names(root))
        listed = ", ".join(there[:_MOST_NAMES_LISTED]) + (", …" if len(there) > _MOST_NAMES_LISTED else "")
        raise ModelNotFound(f"no model {name} in {models_dir}; there {'are: ' + listed if there else 'is none'}")
    return path


def weight_files(path: Path) -> tuple[Path, ...]:
    """The safetensors files of a model directory, by name. Raises BadCheckpoint when there are none."""
    single = path / SINGLE_FILE
    if single.exists():
        return (single,)
    if (path / INDEX_FILE).exists():
        return tuple(sorted({path / file for file in _read_index(path).values()}))
    if any(next(path.glob(pattern), None) for pattern in _PICKLES):
        raise BadCheckpoint(
            f"{path}: only pickle checkpoints, which can run code and are refused; on a machine where you trust them "
            "convert with transformers: AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW_DIR)"
        )
    raise BadCheckpoint(f"{path}: neither {SINGLE_FILE} nor {INDEX_FILE} is there")


def read_json(path: Path) -> dict[str, Any]:
    """One JSON object from a file of the checkpoint. Raises BadCheckpoint naming the file."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_JSON_BYTES + 1)
    except OSError as problem:
        raise BadCheckpoint(f"{path}: cannot be read: {problem.strerror}") from problem
    if len(data) > MAX_JSON_BYTES:
        raise BadCheckpoint(f"{path}: more than {MAX_JSON_BYTES} bytes")
    try:
        parsed = json.loads(data)
    except (ValueError, RecursionError) as problem:
        raise BadCheckpoint(f"{path}: no valid JSON: {problem}") from problem
    if not isinstance(parsed, dict):
        raise BadCheckpoint(f"{path}: must hold a JSON object")
    return parsed


def _files_by_tensor(path: Path) -> dict[str, SafetensorsFile]:
    opened = {file.name: SafetensorsFile(file) for file in weight_files(path)}
    if SINGLE_FILE in opened:
        return dict.fromkeys(opened[SINGLE_FILE].entries, opened[SINGLE_FILE])
    found: dict[str, SafetensorsFile] = {}
    for name, file in _read_index(path).items():
        if name not in opened[file].entries:
            raise BadCheckpoint(f"{path / INDEX_FILE}: says tensor {name} is in {file}, which does not hold it")
        found[name] = opened[file]
    return found


def _read_index(path: Path) -> dict[str, str]:
    """Tensor name to file name; a file name is refused unless it is one, so that an index cannot lead elsewhere."""
    index = path / INDEX_FILE
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadCheckpoint(f"{index}: weight_map is missing or empty")
    for name, file in weight_map.items():
        if not isinstance(file, str) or not _SHARD_NAME.fullmatch(file):
            raise BadCheckpoint(f"{index}: tensor {name}: {file!r} is no plain name of a safetensors file")
    return weight_map


def _model_names(root: Path) -> Iterator[str]:
    if root.is_dir():
        for pattern in ("*/config.json", "*/*/config.json"):
            for config in root.glob(pattern):
                yield config.parent.relative_to(root).as_posix()
