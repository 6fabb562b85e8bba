"""Layout of the KV pools: sizes and offsets, no memory and no ONNX Runtime.

Each layer has two pools, keys and values, of shape [slots, kv heads, capacity, head_dim]. A run sees the contiguous
slots of its rows as a tensor that starts at the first slot's offset, so rows are never copied.
"""

from __future__ import annotations

from dataclasses import dataclass

from planner.model_spec import ModelSpec


@dataclass(frozen=True, slots=True)
class KvLayout:
    """One pool: `slots` slots of `context` positions and one more, where an idle row that is full writes its dummy."""

    slots: int
    context: int
    kv_heads: int
    head_dim: int
    element_bytes: int

    def __post_init__(self) -> None:
        for name in ("slots", "context", "kv_heads", "head_dim", "element_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"KV pool: {name} is {getattr(self, name)}, must be at least 1")

    @classmethod
    def of(cls, spec: ModelSpec, slots: int, context: int, element_bytes: int) -> KvLayout:
        """Raises ValueError when the context exceeds the positions the model was made for."""
        if context > spec.max_positions:
            raise ValueError(f"context {context} is longer than the model's {spec.max_positions} positions")
        return cls(slots, context, spec.num_kv_heads, spec.head_dim, element_bytes)

    @property
    def capacity(self) -> int:
        return self.context + 1

    @property
    def slot_bytes(self) -> int:
        return self.kv_heads * self.capacity * self.head_dim * self.element_bytes

    @property
    def pool_bytes(self) -> int:
        """Keys of one layer; its values take as much again."""
        return self.slots * self.slot_bytes

    def layers_bytes(self, layers: int) -> int:
        return 2 * layers * self.pool_bytes

    def shape(self, rows: int) -> tuple[int, int, int, int]:
        return (rows, self.kv_heads, self.capacity, self.head_dim)

    def offset_bytes(self, slot: int, rows: int) -> int:
        """Where the tensor of `rows` slots from `slot` begins; raises ValueError when it does not lie in the pool."""
        if slot < 0 or rows < 1 or slot + rows > self.slots:
            raise ValueError(f"slots {slot} to {slot + rows - 1} do not lie in the pool's 0 to {self.slots - 1}")
        return slot * self.slot_bytes
