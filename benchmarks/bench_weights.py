"""Weights that travel: bytes a device receives against the size of the model, and how fast, on loopback with CURVE.

Two devices share a 1.1B-shape model in int4; the second half has no copy of it. Fetched are, each time into an empty
cache, its layers from a coordinator that has to make them, from one that has made them, and from a peer. What a 13B
shape takes is counted from its graphs' shapes: nothing of that size is made here.

    python benchmarks/bench_weights.py --out benchmarks/results/weights.json
"""

from __future__ import annotations

import argparse
import hashlib
import math
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import random_model
from report import write_report

from agent.compute.checkpoint import Checkpoint
from agent.compute.layer_store import LayerStore
from agent.compute.model_digest import model_digest
from agent.compute.part import EMBEDDING, PartKey, parts_of
from agent.compute.weights import part_weights
from agent.weight_server import OpenParts, PartServer, StoreParts
from agent.weight_transfer import Transfer, source_endpoint
from agent.wire.addresses import BulkSource
from agent.wire.bulk_plane import BulkServerPlane
from agent.wire.security import AllowList, KeyPair, generate_keys
from edgectl.bulk_server import BulkServer
from edgectl.config import ClusterConfig, CoordinatorConfig, DeviceConfig
from planner.model_spec import ModelSpec, parse_config
from planner.types import LayerRange

LIMIT_BYTES = 100 << 30
CONTROL = "tcp://127.0.0.1:5570"
REPEATS = 3
LLAMA2_13B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_attention_heads": 40,
    "num_key_value_heads": 40,
    "num_hidden_layers": 40,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
}


def part_bytes(spec: ModelSpec, key: PartKey, part: str) -> int:
    """Bytes of the tensors of a part as `make_arrays` makes them; the embedding as the checkpoint has it, in fp16."""
    if part == EMBEDDING:
        return 2 * spec.vocab_size * spec.hidden_size
    total = 0
    for weight in part_weights(spec, key, part):
        elements = math.prod(weight.shape)
        if weight.form != "quantized":
            total += elements * (4 if weight.dtype == "fp32" else 2)
            continue
        rows, columns = weight.shape
        blocks = -(-columns // weight.block_size)
        values, scales = blocks * weight.block_size * weight.bits // 8, 4 * blocks
        zeros = 0 if weight.symmetric else -(-blocks * weight.bits // 8)
        total += rows * (values + scales + zeros)
    return total


def checkpoint_bytes(spec: ModelSpec) -> int:
    """An fp16 checkpoint: every tensor in two bytes per element."""
    parts = parts_of([LayerRange(0, spec.num_layers)], spec.num_layers)
    key = PartKey("0" * 64, "fp16", 0, "fp16")
    return sum(part_bytes(spec, key, part) for part in parts)


def sizes_of_13b() -> dict[str, float]:
    spec = parse_config(LLAMA2_13B)
    parts = parts_of([LayerRange(0, spec.num_layers)], spec.num_layers)
    found = {"checkpoint_gb": checkpoint_bytes(spec) / 1e9}
    for block_size in (32, 128):
        key = PartKey("0" * 64, "int4", block_size, "fp32")
        by_part = {part: part_bytes(spec, key, part) / 1e9 for part in parts}
        found[f"int4_block_{block_size}_layers_gb"] = sum(size for part, size in by_part.items() if "layer" in part)
        found[f"int4_block_{block_size}_all_gb"] = sum(by_part.values())
    return found


def fetch(key: PartKey, sources: Sequence[BulkSource], keys: KeyPair, root: Path, parts: Sequence[str]) -> float:
    """Seconds until all parts lie in an empty cache."""
    shutil.rmtree(root, ignore_errors=True)
    began_s = time.monotonic()
    with closing(Transfer(key, sources, keys, LayerStore(root, LIMIT_BYTES), lambda done, total: None)) as transfer:
        transfer.want(parts)
        transfer.finish()
    return time.monotonic() - began_s


def give(plane: BulkServerPlane, root: Path, stop: list[bool]) -> None:
    """A peer's process, as a thread."""
    server = PartServer(plane, StoreParts(OpenParts(LayerStore(root, LIMIT_BYTES))), 0.0)
    while not stop:
        server.turn()


def measure(model: Path, directory: Path) -> tuple[list[dict[str, object]], dict[str, object]]:
    coordinator, device, peer = (generate_keys() for _ in range(3))
    checkpoint = Checkpoint.open(model)
    digest = model_digest(model, directory / "digests")
    key = PartKey(digest, "int4", 128, "fp32")
    layers = LayerRange(checkpoint.spec.num_layers // 2, checkpoint.spec.num_layers)
    parts = parts_of([layers], checkpoint.spec.num_layers)
    config = ClusterConfig(
        coordinator=CoordinatorConfig(bind=CONTROL), devices=(DeviceConfig(name="device", key=device.public),)
    )
    with ExitStack() as stack:
        server = stack.enter_context(
            closing(BulkServer.open(config, coordinator, model, digest, directory / "coordinator"))
        )
        source = BulkSource("", source_endpoint(server.source, CONTROL), coordinator.public)
        making_s = fetch(key, [source], device, directory / "device", parts)
        received = server.bytes_sent["device"]
        plane = stack.enter_context(
            closing(BulkServerPlane(peer, AllowList({device.public: "device"}), "tcp://127.0.0.1:0"))
        )
        shutil.copytree(directory / "device", directory / "peer")
        stop: list[bool] = []
        thread = threading.Thread(target=give, args=(plane, directory / "peer", stop))
        thread.start()
        stack.callback(thread.join)
        stack.callback(stop.append, True)
        beside = BulkSource("peer", plane.endpoint, peer.public)
        made_s = [fetch(key, [source], device, directory / "device", parts) for _ in range(REPEATS)]
        peer_s = [fetch(key, [source, beside], device, directory / "device", parts) for _ in range(REPEATS)]
    data = b"".join(path.read_bytes() for path in (directory / "device").rglob("*.safetensors"))
    began_s = time.monotonic()
    hashlib.sha256(data)
    hash_s = time.monotonic() - began_s
    size = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    seconds = {
        "the coordinator, which makes them": making_s,
        "the coordinator, which has them": statistics.median(made_s),
        "a peer": statistics.median(peer_s),
        "(sha256 of the same bytes)": hash_s,
    }
    rows = [
        {"from": name, "bytes": len(data), "seconds": taken, "mb_per_s": len(data) / 1e6 / taken}
        for name, taken in seconds.items()
    ]
    facts = {
        "model_bytes": size,
        "layers": str(layers),
        "received_bytes": received,
        "received_share": received / size,
    }
    return rows, facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--models", type=Path, default=Path(tempfile.gettempdir()) / "edgectl-bench-models")
    options = parser.parse_args()
    model = random_model.write(options.models)
    with tempfile.TemporaryDirectory() as directory:
        rows, facts = measure(model, Path(directory))
    facts |= {f"llama2_13b_{name}": value for name, value in sizes_of_13b().items()}
    write_report("weights that travel", rows, facts, options.out)


if __name__ == "__main__":
    main()
