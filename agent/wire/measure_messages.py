"""Control messages by which devices and links are measured, and the limits of what may be asked for."""

from __future__ import annotations

from agent.wire.message import Message
from planner.channel import Channel
from planner.profile import DeviceProfile, LinkProfile
from planner.types import BoundaryType, Codec, Quantization

MAX_MEASURED_POINTS = 16
"""Rows, contexts, prompts, or frame sizes of one measurement: three times as many as `edgectl profile` asks for."""
MAX_MEASURED_BYTES = 64 << 20
"""Payloads of all frame sizes of one link together; 169 tokens of hidden size 65,536 in fp32 are 43 MiB."""
MAX_MEASURE_S = 3600
"""Of one device or link: the device serves nobody meanwhile."""

MAX_QUALITY_TOKENS = 1 << 18
"""Of a text that perplexity is measured on: as many as WikiText-2's test split has words, three bytes each."""
MAX_QUALITY_CHANNELS = 64
"""Of one request: an hour at a minute each."""


# --- coordinator → agent (supervisor) ---


class MeasureDevice(Message, frozen=True):
    """Time layers of a model on this device, with its own weights or random ones; what was loaded is unloaded first."""

    request: int
    model: str
    """Directory below models_dir to take weights from; where there is none they are random."""
    config: str
    """The model's config.json."""
    quantization: Quantization
    block_size: int
    boundary: BoundaryType
    rows: tuple[int, ...]
    """Decode batch sizes to time."""
    contexts: tuple[int, ...]
    """Tokens a row holds when decoding is timed."""
    prompts: tuple[int, ...]
    """Lengths of prefill chunks to time."""
    seconds: float
    """About how long the whole may take, at most MAX_MEASURE_S."""


class MeasureLink(Message, frozen=True):
    """Time frames from this device to another one's data endpoint, through transport and codec of serving."""

    request: int
    peer: str
    endpoint: str
    key: str
    sizes: tuple[tuple[int, int], ...]
    """(rows or chunk tokens, hidden size) of the hidden states to send, smallest first."""
    codec: Codec
    seconds: float


class MeasureQuality(Message, frozen=True):
    """Perplexity of a text with the model split at one layer, once per channel; what was loaded is unloaded first.

    For at most MAX_MEASURE_S. Each result goes out as soon as it is there.
    """

    request: int
    model: str
    digest: str
    num_layers: int
    quantization: Quantization
    block_size: int
    boundary: BoundaryType
    codec: Codec
    window: int
    """Tokens that are scored together."""
    tokens: tuple[int, ...]
    """Whole windows of them."""
    split: int
    channels: tuple[Channel, ...]


# --- agent (supervisor) → coordinator ---


class MeasureProgress(Message, frozen=True):
    """A measurement goes on: `what` says in a few words which part is next."""

    what: str
    done: int
    total: int


class DeviceMeasured(Message, frozen=True):
    request: int
    profile: DeviceProfile


class LinkMeasured(Message, frozen=True):
    request: int
    link: LinkProfile


class QualityMeasured(Message, frozen=True):
    """Over one of the channels that were asked for; NaN or infinity where the model breaks."""

    request: int
    index: int
    perplexity: float
