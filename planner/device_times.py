"""What one device takes for a layer, the head and a run, and into what runs a prompt is cut."""

from __future__ import annotations

from planner.errors import BadProfile
from planner.interpolation import DecodeTimes, head_curve, prefill_curve
from planner.profile import DeviceProfile


def chunk_lengths(prompt: int, largest: int) -> list[int]:
    """How the token loop cuts a prompt: full chunks and a rest, none of them one token unless the prompt is."""
    full, rest = divmod(prompt, largest)
    lengths = [largest] * full + [rest] * (rest > 0)
    if rest == 1 and full and largest > 1:
        lengths[-2:] = [largest - 1, 2]
    return lengths


class DeviceTimes:
    """One device's points as functions of rows, context and tokens. Raises BadProfile for points that make none."""

    def __init__(self, device: DeviceProfile) -> None:
        try:
            self.decode = DecodeTimes(device.decode)
            self.prefill = prefill_curve(device.prefill, self.decode)
            self.head = head_curve(device.head)
        except ValueError as problem:
            raise BadProfile(f"device {device.name}", str(problem)) from None
        self.embedding_ms = device.embedding_ms
        self.stage_ms = device.stage_ms
