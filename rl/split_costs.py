"""What each split point of two devices costs: milliseconds, joules, and bytes that a move of the split sends.

Read off the planner's cost model once, so that worlds and controllers compare the very numbers that plans are made of.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planner.cost import CostModel
from planner.memory import kv_bytes_per_token_layer
from planner.testbed import load_testbed
from planner.types import LayerRange
from rl.arrays import FloatArray, IntArray


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitCosts:
    """Of a source with the layers before each split and one device with the others. Raises ValueError."""

    splits: tuple[int, ...]
    device_ms: tuple[float, ...]
    """Decode step of one token on both devices, without the link."""
    source_j: tuple[float, ...] | None
    """Of one token on the source, above what it draws anyway; None: its power is not known."""
    hop_ms: float
    """Latency of the link, there and back."""
    hidden_bytes: int
    """Of one token over the link."""
    kv_bytes_per_token_layer: int

    def __post_init__(self) -> None:
        if not self.splits or list(self.splits) != sorted(set(self.splits)):
            raise ValueError(f"splits {self.splits}: ascending ones are expected")
        if len(self.device_ms) != len(self.splits) or len(self.source_j or self.splits) != len(self.splits):
            raise ValueError(f"{len(self.device_ms)} times for {len(self.splits)} splits")
        if not all(math.isfinite(ms) for ms in (*self.device_ms, self.hop_ms)):
            raise ValueError(f"times {self.device_ms}, hop {self.hop_ms}: is there a link between the two?")

    @classmethod
    def of(cls, model: CostModel, source: str, peer: str, splits: Sequence[int]) -> SplitCosts:
        """Raises UnknownName for a device that is not in the profile, ValueError without a link or for a split that
        leaves one of the two without layers."""
        last = model.spec.num_layers
        if any(not 0 < split < last for split in splits):
            raise ValueError(f"splits {tuple(splits)}: 1 to {last - 1} leave layers on both devices")
        source_ms = [model.decode_ms(source, LayerRange(0, split)) for split in splits]
        peer_ms = [model.decode_ms(peer, LayerRange(split, last)) for split in splits]
        power = model.device(source).power
        return cls(
            splits=tuple(splits),
            device_ms=tuple(ms + rest for ms, rest in zip(source_ms, peer_ms, strict=True)),
            source_j=None
            if power is None
            else tuple(1e-3 * ms * max(0.0, power.decode_w - power.idle_w) for ms in source_ms),
            hop_ms=model.latency_ms(source, peer) + model.latency_ms(peer, source),
            hidden_bytes=model.hidden_bytes,
            kv_bytes_per_token_layer=kv_bytes_per_token_layer(
                model.spec, 2 if model.workload.quantization == "fp16" else 4
            ),
        )

    @classmethod
    def of_edgeshard(cls, splits: Sequence[int]) -> SplitCosts:
        """Llama-2-7B, 32 layers, on EdgeShard's testbed (arXiv 2405.14371): an AGX Orin and the cloud's GPU. A
        calibrated cost model and no measurement of ours."""
        testbed = load_testbed("edgeshard-paper", "llama2-7b")
        return cls.of(CostModel(testbed.profile, testbed.defaults, source="agx-0"), "agx-0", "cloud-0", splits)

    def token_ms(self, place: IntArray, bytes_per_s: FloatArray) -> FloatArray:
        """Of one decode step at each place (index of a split), with a link of that goodput."""
        link_ms = 1e3 * self.hidden_bytes / bytes_per_s
        return np.asarray(np.array(self.device_ms)[place] + self.hop_ms + link_ms, np.float64)

    def move_bytes(self, layers: FloatArray, context_tokens: float) -> FloatArray:
        """Keys and values of so many layers that change hands."""
        return np.asarray(np.abs(layers) * context_tokens * self.kv_bytes_per_token_layer, np.float64)
