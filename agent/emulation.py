"""What an agent plays when `emulate` is set in agent.toml: a device of a profile, at its pace and without weights.

The file is one of `edgectl profile`, or a folder with such a file per model, named after it. It is read at every load.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from agent.compute.emulated_executor import EmulatedExecutor
from agent.config import AgentConfig
from agent.errors import ConfigError, ModelMismatch, ModelNotFound
from agent.wire.measure_messages import MeasureDevice
from agent.wire.messages import Load
from planner.device_times import DeviceTimes
from planner.errors import BadProfile
from planner.model_spec import ModelSpec
from planner.profile import ClusterProfile, DeviceProfile
from planner.profile_json import MOST_BYTES, parse_profile
from planner.types import LayerRange

_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?")
"""Nothing that leads out of the folder."""


@dataclass(frozen=True, slots=True)
class EmulatedDevice:
    """A device of a profile and the model it was measured with."""

    spec: ModelSpec
    profile: DeviceProfile

    def executor(self, resident: tuple[LayerRange, ...], *, slots: int, context: int) -> EmulatedExecutor:
        """Raises BadProfile when the device's points make no times."""
        return EmulatedExecutor(self.spec, DeviceTimes(self.profile), resident, slots=slots, context=context)


def emulated_device(config: AgentConfig, request: Load | MeasureDevice) -> EmulatedDevice:
    """The device to play for this model: the file's only one, or the one with this agent's name.

    Raises ModelNotFound for a file that is not there, ConfigError for one without this device, ModelMismatch for
    one of another model or other weights, BadProfile.
    """
    path = _file(Path(config.emulate), request.model)
    profile = _read(path)
    if (profile.model, profile.quantization) != (request.model, request.quantization):
        raise ModelMismatch(
            f"{path} has times of {profile.model} with {profile.quantization} weights, "
            f"{request.model} with {request.quantization} weights is to be loaded: profile that"
        )
    if len(profile.devices) == 1:
        return EmulatedDevice(profile.spec, profile.devices[0])
    try:
        return EmulatedDevice(profile.spec, profile.device(config.name))
    except KeyError:
        known = ", ".join(device.name for device in profile.devices)
        raise ConfigError(
            f"{path} has no device {config.name}, it has {known}; `name` in agent.toml says who"
        ) from None


def _file(path: Path, model: str) -> Path:
    if not path.is_dir():
        return path
    if _MODEL_NAME.fullmatch(model) is None:
        raise ModelNotFound(f"{model!r} is no name of a model")
    return path / f"{model}.json"


def _read(path: Path) -> ClusterProfile:
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MOST_BYTES + 1)
    except (OSError, UnicodeDecodeError) as problem:
        reason = problem.strerror if isinstance(problem, OSError) else str(problem)
        raise ModelNotFound(
            f"{path}: the times to emulate cannot be read: {reason}; `edgectl profile` writes such a file"
        ) from problem
    try:
        return parse_profile(text)
    except BadProfile as problem:
        raise BadProfile(str(path), str(problem).removeprefix("profile: ")) from problem
