"""Where profiles lie on the coordinator's machine, which is the newest, and whether one still describes its devices."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from agent.errors import ConfigError
from edgectl.config import CoordinatorConfig, cluster_file_places, find_cluster_file, load_config, state_directory
from planner.profile import ClusterProfile
from planner.types import Quantization

FOLDER = "profiles"
MAX_AGE_DAYS = 30
"""An older profile is said to be stale: packages, clocks and cables have changed unnoticed by then."""

DECISIVE = (
    "board",
    "module",
    "l4t",
    "jetpack",
    "power_mode",
    "governor",
    "gpu_governor",
    "gpu_driver",
    "cores_on",
    "provider",
    "runtime",
    "edgectl",
    "threads",
)
"""Fields of a fingerprint that change how fast a device computes; clocks and temperatures vary by themselves."""

Fingerprint = Mapping[str, "str | float | None"]


class StoredProfile(NamedTuple):
    """A profile and the file it was read from."""

    path: Path
    profile: ClusterProfile


def profiles_directory(env: Mapping[str, str], cluster: Path | None = None) -> Path:
    """Folder of profiles in the state directory of the cluster.toml that is found, else of the default one.

    Raises ConfigError for a `--cluster` that is not there, or a broken file.
    """
    if cluster is None and not any(place.is_file() for place in cluster_file_places(env)):
        return state_directory(CoordinatorConfig(), env) / FOLDER
    config = load_config(find_cluster_file(cluster, env), env)
    return state_directory(config.coordinator, env) / FOLDER


def file_name(profile: ClusterProfile) -> str:
    """`MODEL-QUANTIZATION-TIME.json`; later ones of a model sort behind earlier ones."""
    when = re.sub(r"[^0-9TZ]", "", profile.created)
    return f"{_prefix(profile.model, profile.quantization)}{when or '0'}.json"


def save_profile(profile: ClusterProfile, path: Path) -> Path:
    """Writes the profile beside `path` and renames it, so that a reader sees the old file or the new one, never half.

    A directory gets a file named by `file_name`. Raises ConfigError when it cannot be written.
    """
    from planner.profile_json import dump_profile

    target = path / file_name(profile) if path.is_dir() or not path.suffix else path
    text = dump_profile(profile)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", dir=target.parent, prefix=f".{target.name}.", delete=False, encoding="utf-8"
        ) as partial:
            partial.write(text)
            partial.flush()
            os.fsync(partial.fileno())
        Path(partial.name).replace(target)
    except OSError as problem:
        raise ConfigError(
            f"{target}: the profile cannot be written: {problem.strerror}; --out names another file"
        ) from problem
    return target


def load_profile(path: Path) -> ClusterProfile:
    """Raises ConfigError for a file that cannot be read, BadProfile naming the file and the field."""
    from planner.errors import BadProfile
    from planner.profile_json import parse_profile

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        reason = problem.strerror if isinstance(problem, OSError) else str(problem)
        raise ConfigError(f"{path}: the profile cannot be read: {reason}; `edgectl profile` writes one") from problem
    try:
        return parse_profile(text)
    except BadProfile as problem:
        raise BadProfile(str(path), str(problem).removeprefix("profile: ")) from problem


def newest_profile(
    directory: Path, model: str | None = None, quantization: Quantization | None = None
) -> StoredProfile | None:
    """The last profile written there, of this model and quantization where they are given; None when there is none.

    Only the names of files are looked at until one matches. Raises what `load_profile` raises.
    """
    for path in sorted(_files(directory), key=lambda path: (path.stem.rpartition("-")[2], path.name), reverse=True):
        if model is not None and not path.name.startswith(_prefix(model, quantization)):
            continue
        if model is None and quantization is not None and f"-{quantization}-" not in path.name:
            continue
        profile = load_profile(path)
        if model in (None, profile.model) and quantization in (None, profile.quantization):
            return StoredProfile(path, profile)
    return None


def staleness(
    profile: ClusterProfile, now: Mapping[str, Fingerprint], *, version: str, at: datetime | None = None
) -> list[str]:
    """Why the numbers may no longer hold, a sentence each; nothing when nobody knows better.

    `now` has the fingerprints that are known today, by device; `version` is edgectl's, `at` the present.
    """
    reasons = []
    if profile.version and profile.version != version:
        reasons.append(f"measured by edgectl {profile.version}, this is {version}")
    days = _age_days(profile.created, at)
    if days is not None and days > MAX_AGE_DAYS:
        reasons.append(f"measured {days} days ago")
    for device in profile.devices:
        if device.name in now:
            reasons += _changes(device.name, device.fingerprint, now[device.name])
    return reasons


def fingerprints_here(profile: ClusterProfile, here: Fingerprint, boot_id: str) -> dict[str, Fingerprint]:
    """The present fingerprint of this machine for each device of the profile that was measured on it."""
    return {device.name: here for device in profile.devices if device.host == boot_id}


def _changes(device: str, then: Fingerprint, now: Fingerprint) -> list[str]:
    changed = []
    for name in DECISIVE:
        before, after = then.get(name), now.get(name)
        if before is not None and after is not None and before != after:
            changed.append(f"{device}: {name.replace('_', ' ')} was {before}, it is {after} now")
    return changed


def _age_days(created: str, at: datetime | None) -> int | None:
    if at is None or not created:
        return None
    try:
        measured = datetime.fromisoformat(created.replace("Z", "+00:00"))
    except ValueError:
        return None
    return (at - measured).days if (measured.tzinfo is None) == (at.tzinfo is None) else None


def _files(directory: Path) -> Sequence[Path]:
    return [path for path in directory.glob("*.json") if path.is_file()] if directory.is_dir() else []


def _prefix(model: str, quantization: Quantization | None) -> str:
    name = re.sub(r"[^\w.-]", "_", model)
    return f"{name}-{quantization}-" if quantization is not None else f"{name}-"
