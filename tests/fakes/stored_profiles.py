"""Model directories and profiles on disk, as `edgectl plan` finds them."""

from __future__ import annotations

import json
from pathlib import Path

from edgectl.profile_store import FOLDER, save_profile
from edgectl.profiled_model import config_of
from planner.profile import ClusterProfile
from tests.fakes.measured_devices import SPEC


def model_directory(root: Path, name: str = "m") -> Path:
    """A directory with the config.json of the profiles of `measured_devices`, without weights."""
    directory = root / name
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config_of(SPEC)), encoding="utf-8")
    return directory


def stored(root: Path, profile: ClusterProfile) -> tuple[Path, dict[str, str]]:
    """A profile in the state directory, and the environment that leads there."""
    env = {"STATE_DIRECTORY": str(root / "state"), "HOME": str(root), "XDG_CONFIG_HOME": str(root)}
    return save_profile(profile, root / "state" / FOLDER), env
