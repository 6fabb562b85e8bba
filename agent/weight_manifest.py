"""What travels about a model as a whole: its config.json, and what its digest was made of to check it against.

A device without the model learns from it which layers there are and how they are computed. Nothing in it is believed:
the digest, which the coordinator named when it asked for the load, is made again from config.json and the rest.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from agent.compute.model_digest import DigestInputs, digest_inputs, digest_of
from agent.errors import BadCheckpoint
from planner.model_spec import ModelSpec, parse_config

MODEL = "model"
"""Name of the part whose manifest this is; it has no tensors."""
MAX_CONFIG_BYTES = 1 << 20
"""A config.json has a few kilobytes."""
MAX_FILES = 1000
"""The largest public models come in fewer than 200."""

_Sha256 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]


class ModelManifest(msgspec.Struct, frozen=True):
    """Satisfies whoever knows the digest that `config` is the model's config.json."""

    config: Annotated[bytes, Meta(max_length=MAX_CONFIG_BYTES)]
    tokenizer_sha256: Annotated[str, Meta(pattern=r"\A([0-9a-f]{64}|absent)\Z")]
    files: Annotated[
        tuple[tuple[Annotated[str, Meta(max_length=255)], bytes, _Sha256], ...], Meta(max_length=MAX_FILES)
    ]


def encode_manifest(directory: Path, cache_dir: Path | None) -> bytes:
    """The manifest of a model directory. Raises BadCheckpoint as `model_digest` does."""
    inputs = digest_inputs(directory, cache_dir)
    path = directory / "config.json"
    try:
        config = path.read_bytes()
    except OSError as problem:
        raise BadCheckpoint(f"{path}: cannot be read: {problem.strerror}") from problem
    return msgspec.msgpack.encode(ModelManifest(config, inputs.tokenizer_sha256, inputs.files))


def decode_manifest(data: bytes, digest: str) -> ModelSpec:
    """The model's shape. Raises BadCheckpoint when `data` is not of the model with this digest, and planner's errors
    for a config.json we cannot run."""
    try:
        manifest = msgspec.msgpack.decode(data, type=ModelManifest)
    except (msgspec.DecodeError, RecursionError) as problem:
        raise BadCheckpoint(f"manifest of model {digest[:12]}: {problem}") from problem
    config_sha256 = hashlib.sha256(manifest.config).hexdigest()
    made = digest_of(DigestInputs(config_sha256, manifest.tokenizer_sha256, manifest.files))
    if made != digest:
        raise BadCheckpoint(f"manifest of model {digest[:12]}: it is of a model with digest {made[:12]}")
    try:
        config: Any = json.loads(manifest.config)
    except (ValueError, RecursionError) as problem:
        raise BadCheckpoint(f"config.json of model {digest[:12]}: no valid JSON: {problem}") from problem
    if not isinstance(config, dict):
        raise BadCheckpoint(f"config.json of model {digest[:12]}: must hold a JSON object")
    return parse_config(config)
