"""What a model is, read from its config.json.

Pure and standard library only: planner and agent share it; the memory it takes is in `memory`. Supported are Llama
1/2/3, Mistral, Qwen2 and Qwen3. Whatever this project would compute wrongly is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from planner.errors import BadConfigField, UnsupportedModel

Architecture = Literal["llama", "mistral", "qwen2", "qwen3"]
RopeType = Literal["default", "linear", "llama3", "yarn"]


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary position embedding. Fields a `rope_type` does not use keep their defaults; see `agent.compute.rope`."""

    theta: float = 10000.0
    rope_type: RopeType = "default"
    partial_rotary_factor: float = 1.0
    """Share of each head that rotates: `int(head_dim * partial_rotary_factor)` elements."""
    factor: float = 1.0
    """Context extension; linear, llama3 and yarn."""
    original_max_positions: int = 0
    """Context before extension; llama3 and yarn."""
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    """Multiplies cos and sin; yarn, already worked out from factor, mscale and mscale_all_dim."""
    truncate: bool = True
    """Yarn: correction range rounded to whole dimensions."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Shape of a decoder-only transformer of the Llama family."""

    architecture: Architecture
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int
    rms_norm_eps: float
    rope: RopeSpec
    tied_embeddings: bool
    """The head is the embedding matrix."""
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    """RMS norm over head_dim of every query and key head, before the rotation (Qwen3)."""
    sliding_windows: tuple[int | None, ...]
    """One per layer: a token sees itself and the `window - 1` tokens before it; None is full attention."""

    @property
    def q_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim

    @property
    def rotary_dim(self) -> int:
        """Elements of each head that rotate; even."""
        return int(self.head_dim * self.rope.partial_rotary_factor)


# --- config.json ------------------------------------------------------------------------------------------------------

SUPPORTED: dict[str, Architecture] = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
"""`architectures[0]` of config.json to our name, which is also its `model_type`."""

_ROPE_TYPES: tuple[RopeType, ...] = ("default", "linear", "llama3", "yarn")
_LARGEST = 1 << 24
"""No size in a config exceeds this; it keeps every product below in the range of a 64-bit integer."""
_MOST_LAYERS = 4096


class _Fields:
    """One JSON object of config.json, read with checks. null counts as absent, as in transformers."""

    def __init__(self, values: Mapping[str, object], place: str = "") -> None:
        self._values = values
        self._place = place

    def value(self, name: str) -> object:
        return self._values.get(name)

    def refuse(self, name: str, problem: str) -> BadConfigField:
        return BadConfigField(self._place + name, problem)

    def integer(self, name: str, default: int | None = None, *, smallest: int = 1, largest: int = _LARGEST) -> int:
        value = self._present(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not smallest <= value <= largest:
            raise self.refuse(name, f"must be an integer from {smallest} to {largest}, it is {value!r}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A positive number; every float of a supported config is one."""
        value = self._present(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise self.refuse(name, f"must be a positive number, it is {value!r}")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self._present(name, default)
        if not isinstance(value, bool):
            raise self.refuse(name, f"must be true or false, it is {value!r}")
        return value

    def is_null(self, name: str) -> bool:
        """Whether the field is there and null, which for `sliding_window` differs from absent."""
        return name in self._values and self._values[name] is None

    def has_objects(self) -> bool:
        return any(isinstance(value, Mapping) for value in self._values.values())

    def within(self, name: str) -> _Fields | None:
        value = self.value(name)
        if value is None or value == {}:
            return None
        if not isinstance(value, Mapping):
            raise self.refuse(name, f"must be an object, it is {value!r}")
        return _Fields(value, f"{self._place}{name}.")

    def _present(self, name: str, default: object) -> object:
        value = self.value(name)
        if value is not None:
            return value
        if default is None:
            raise self.refuse(name, "is missing")
        return default


def parse_config(config: Mapping[str, object]) -> ModelSpec:
    """The model a Hugging Face config.json describes, in its transformers 4 or 5 form.

    Raises BadConfigField naming the field, and UnsupportedModel for what this project would compute wrongly.
    """
    fields = _Fields(config)
    architecture = _architecture(fields)
    _refuse_unsupported(fields, architecture)
    num_layers = fields.integer("num_hidden_layers", largest=_MOST_LAYERS)
    hidden_size = fields.integer("hidden_size")
    num_heads = fields.integer("num_attention_heads")
    # null means "as many as heads"; absent means so for Llama only, the others' defaults are arbitrary numbers.
    may_be_absent = architecture == "llama" or fields.is_null("num_key_value_heads")
    num_kv_heads = fields.integer("num_key_value_heads", num_heads if may_be_absent else None)
    if num_heads % num_kv_heads:
        raise fields.refuse("num_attention_heads", f"is {num_heads}, not a multiple of {num_kv_heads} key-value heads")
    if fields.value("head_dim") is None and architecture != "qwen3" and hidden_size % num_heads:
        raise fields.refuse("hidden_size", f"is {hidden_size}, not a multiple of {num_heads} heads")
    head_dim = fields.integer("head_dim", 128 if architecture == "qwen3" else hidden_size // num_heads)
    if head_dim % 2:
        raise fields.refuse("head_dim", f"is {head_dim}; the rotary embedding needs an even one")
    max_positions = fields.integer("max_position_embeddings")
    rope = _rope(fields, max_positions)
    attention_bias = architecture in ("llama", "qwen3") and fields.flag("attention_bias", False)
    return ModelSpec(
        architecture=architecture,
        num_layers=num_layers,
        hidden_size=hidden_size,
        intermediate_size=fields.integer("intermediate_size"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        vocab_size=fields.integer("vocab_size"),
        max_positions=max_positions if rope.rope_type != "yarn" else _yarn_positions(rope, max_positions),
        rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
        rope=rope,
        tied_embeddings=fields.flag("tie_word_embeddings", False),
        qkv_bias=architecture == "qwen2" or attention_bias,
        o_bias=attention_bias,
        mlp_bias=architecture == "llama" and fields.flag("mlp_bias", False),
        qk_norm=architecture == "qwen3",
        sliding_windows=_sliding_windows(fields, architecture, num_layers),
    )


def _architecture(fields: _Fields) -> Architecture:
    names, model_type = fields.value("architectures"), fields.value("model_type")
    if names is not None and (not isinstance(names, Sequence) or isinstance(names, str) or not names):
        raise fields.refuse("architectures", f"must be a list of names, it is {names!r}")
    name = names[0] if names else None
    found = SUPPORTED.get(str(name)) if name is not None else None
    if name is None:
        found = next((ours for ours in SUPPORTED.values() if ours == model_type), None)
    if found is None:
        raise UnsupportedModel(
            f"config.json: {name or model_type!r} is not supported; these are: {', '.join(SUPPORTED)}"
        )
    if model_type is not None and model_type != found:
        raise fields.refuse("model_type", f"is {model_type!r}, but architectures names {name}")
    return found


def _refuse_unsupported(fields: _Fields, architecture: Architecture) -> None:
    for name in ("quantization_config", "compression_config"):
        section = fields.within(name)
        if section is not None:
            method = section.value("quant_method") or "unknown method"
            raise UnsupportedModel(
                f"config.json: {name}: weights already quantized ({method}) are not supported; "
                "take the fp16 or bf16 checkpoint and let --quantize int4 quantize it"
            )
    activation = fields.value("hidden_act")
    if activation not in (None, "silu", "swish"):
        raise UnsupportedModel(f"config.json: hidden_act {activation!r} is not supported for {architecture}; silu is")


def _rope(fields: _Fields, max_positions: int) -> RopeSpec:
    """`rope_parameters` (transformers 5) or `rope_scaling` beside `rope_theta` (4); as there, the latter wins."""
    place = fields.within("rope_scaling") or fields.within("rope_parameters") or _Fields({}, "rope_parameters.")
    if place.has_objects():
        raise UnsupportedModel("config.json: rope parameters that differ by layer type are not supported")
    theta = place.number("rope_theta", fields.number("rope_theta", 10000.0))
    rope_type = place.value("rope_type") or place.value("type") or "default"
    if rope_type not in _ROPE_TYPES:
        raise UnsupportedModel(f"config.json: rope type {rope_type!r} is not supported; {', '.join(_ROPE_TYPES)} are")
    for owner in (fields, place):
        if owner.number("partial_rotary_factor", 1.0) != 1.0:
            raise UnsupportedModel("config.json: partial_rotary_factor other than 1 is not supported")
    if rope_type == "default":
        return RopeSpec(theta=theta)
    if rope_type == "linear":
        return RopeSpec(theta=theta, rope_type="linear", factor=place.number("factor"))
    original = place.integer("original_max_position_embeddings", max_positions)
    original = fields.integer("original_max_position_embeddings", original)
    if rope_type == "llama3":
        low, high = place.number("low_freq_factor"), place.number("high_freq_factor")
        if low >= high:
            raise place.refuse("high_freq_factor", f"is {high}, not above low_freq_factor, which is {low}")
        return RopeSpec(
            theta=theta,
            rope_type="llama3",
            factor=place.number("factor"),
            original_max_positions=original,
            low_freq_factor=low,
            high_freq_factor=high,
        )
    factor = place.number("factor", max_positions / original)
    return RopeSpec(
        theta=theta,
        rope_type="yarn",
        factor=factor,
        original_max_positions=original,
        beta_fast=place.number("beta_fast", 32.0),
        beta_slow=place.number("beta_slow", 1.0),
        attention_factor=_yarn_attention_factor(place, factor),
        truncate=place.flag("truncate", True),
    )


def _yarn_positions(rope: RopeSpec, max_positions: int) -> int:
    """A yarn config often keeps the length before extension in max_position_embeddings (Qwen2.5 does)."""
    return int(max(max_positions, min(rope.original_max_positions * rope.factor, _LARGEST)))


def _yarn_attention_factor(place: _Fields, factor: float) -> float:
    """Yarn's temperature on the attention (arXiv 2309.00071, equation 22), folded into cos and sin."""

    def scale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if place.value("attention_factor") is not None:
        return place.number("attention_factor")
    if place.value("mscale") and place.value("mscale_all_dim"):
        return scale(place.number("mscale")) / scale(place.number("mscale_all_dim"))
    return scale(1.0)


def _sliding_windows(fields: _Fields, architecture: Architecture, num_layers: int) -> tuple[int | None, ...]:
    if architecture == "llama":
        return (None,) * num_layers
    named = _layer_types(fields, num_layers)
    if architecture == "mistral":
        # Absent means 4096 (Mistral 7B v0.1), null means full attention (v0.2 and later).
        window = None if fields.is_null("sliding_window") else fields.integer("sliding_window", 4096)
        expected = ["full_attention" if window is None else "sliding_attention"] * num_layers
        if named is not None and named != expected:
            raise UnsupportedModel("config.json: layer_types that alternate are not supported for mistral")
        return (window,) * num_layers
    window = None
    if fields.flag("use_sliding_window", False) and not fields.is_null("sliding_window"):
        window = fields.integer("sliding_window", 4096)
    if named is None:
        full_layers = fields.integer("max_window_layers", 28, smallest=0) if window is not None else num_layers
        return tuple(window if layer >= full_layers else None for layer in range(num_layers))
    if window is None and "sliding_attention" in named:
        raise fields.refuse("layer_types", "names sliding_attention, but use_sliding_window is off")
    return tuple(window if kind == "sliding_attention" else None for kind in named)


def _layer_types(fields: _Fields, num_layers: int) -> list[object] | None:
    named = fields.value("layer_types")
    if named is None:
        return None
    if not isinstance(named, Sequence) or isinstance(named, str) or len(named) != num_layers:
        raise fields.refuse("layer_types", f"must be a list of {num_layers} names, one per layer")
    for kind in named:
        if kind not in ("full_attention", "sliding_attention"):
            raise UnsupportedModel(
                f"config.json: layer_types: {kind!r} is not supported; full_attention and sliding_attention are"
            )
    return list(named)
