"""From what `--model` says to a directory, a name that every device knows it by, and a digest."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from agent.errors import ModelNotFound
from edgectl.output import say
from edgectl.planning import ServedModel

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
HUB_FILES = ("*.safetensors", "*.json", "*.jinja")
"""What a model directory needs; a repository's pickles and other formats stay where they are."""

CACHE_DIR = Path("~/.cache/edgectl")
"""Content digests, shared with an agent on the same machine; may be deleted at any time."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class LocatedModel:
    """A model directory on this machine and the name devices find their copy by, below their models_dir."""

    name: str
    directory: Path


def locate_model(text: str) -> LocatedModel:
    """A directory, or `owner/name` on the Hugging Face hub, which is downloaded. Raises ModelNotFound."""
    directory = Path(text).expanduser()
    if directory.is_dir():
        return LocatedModel(directory.resolve().name, directory.resolve())
    if not HUB_ID.fullmatch(text):
        raise ModelNotFound(f"{text}: no such directory, and not an owner/name of the Hugging Face hub")
    return LocatedModel(text, _download(text))


def describe_model(located: LocatedModel, progress: Progress | None = None) -> ServedModel:
    """Shape and digest of a model; reads every byte of it the first time. Raises BadCheckpoint, PlannerError."""
    from agent.compute.checkpoint import Checkpoint
    from agent.compute.model_digest import model_digest

    spec = Checkpoint.open(located.directory).spec
    digest = model_digest(located.directory, CACHE_DIR.expanduser(), progress)
    return ServedModel(located.name, digest, spec)


def _download(repository: str) -> Path:
    """The hub's copy in the hub's own cache; the hub's library draws its bars. Raises ModelNotFound with its reason."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    say(f"fetching {repository} from the Hugging Face hub, or its copy here")
    try:
        return Path(snapshot_download(repository, allow_patterns=list(HUB_FILES)))
    except (HfHubHTTPError, OSError, ValueError) as problem:
        reason = str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__
        raise ModelNotFound(
            f"{repository}: no such directory here, and the Hugging Face hub did not give it: {reason}"
        ) from problem
