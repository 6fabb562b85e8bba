"""The manifest of a model: made, read again, and refused when anything in it is of another model."""

from __future__ import annotations

import hashlib

import msgspec
import pytest

from agent.compute.checkpoint import Checkpoint
from agent.compute.model_digest import DigestInputs, digest_of, model_digest
from agent.errors import BadCheckpoint
from agent.weight_manifest import ModelManifest, decode_manifest, encode_manifest
from tests.fakes.fake_engine import MODEL_DIR

DIGEST = model_digest(MODEL_DIR)
DATA = encode_manifest(MODEL_DIR, None)


def test_a_manifest_gives_the_shape_of_the_model_and_is_small() -> None:
    assert decode_manifest(DATA, DIGEST) == Checkpoint.open(MODEL_DIR).spec
    assert len(DATA) < 100_000


def test_a_manifest_with_anything_changed_is_refused() -> None:
    manifest = msgspec.msgpack.decode(DATA, type=ModelManifest)
    name, header, sha256 = manifest.files[0]
    other = {
        "config": manifest.config.replace(b"silu", b"gelu"),
        "tokenizer_sha256": "0" * 64,
        "files": ((name, header + b" ", sha256), *manifest.files[1:]),
    }
    for field, value in other.items():
        changed = msgspec.structs.replace(manifest, **{field: value})
        assert changed != manifest
        with pytest.raises(BadCheckpoint, match="it is of a model with digest"):
            decode_manifest(msgspec.msgpack.encode(changed), DIGEST)
    with pytest.raises(BadCheckpoint, match="it is of a model with digest"):
        decode_manifest(DATA, "f" * 64)


@pytest.mark.parametrize("data", [b"", b"\xc1", DATA[:-1], b"\x91" * 5000, msgspec.msgpack.encode({"config": 1})])
def test_bytes_that_are_no_manifest_are_refused(data: bytes) -> None:
    with pytest.raises(BadCheckpoint):
        decode_manifest(data, DIGEST)


@pytest.mark.parametrize("config", [b"", b"[]", b"{", b"[" * 50_000])
def test_a_config_that_is_none_is_refused_though_its_digest_be_right(config: bytes) -> None:
    manifest = msgspec.msgpack.decode(DATA, type=ModelManifest)
    changed = msgspec.structs.replace(manifest, config=config)
    sha256 = hashlib.sha256(config).hexdigest()
    digest = digest_of(DigestInputs(sha256, changed.tokenizer_sha256, changed.files))
    with pytest.raises(BadCheckpoint, match=r"config\.json"):
        decode_manifest(msgspec.msgpack.encode(changed), digest)
