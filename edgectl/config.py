"""ClusterConfig: the coordinator's settings and the list of devices, read once at start and never changed.

Owns the file format of cluster.toml and where it is looked for. Precedence: command-line flag, then
`EDGE_COORDINATOR__<KEY>` in the environment, then the file, then the default written here.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

import msgspec

from agent.config import DEVICE_NAME, Z85_KEY
from agent.errors import ConfigError
from agent.wire.addresses import BulkSource
from edgectl.cluster_settings import ClusterSettings
from edgectl.links_config import LinkConfig, channels_of, check_links, shapes_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_SESSIONS_LIMIT = 100_000
"""A queue of that many holds gigabytes of prompts; whoever wants none has 0."""

ENV_PREFIX = "EDGE_COORDINATOR__"
FILE_NAME = "cluster.toml"
_ENDPOINT = re.compile(r"tcp://\S+:(\d{1,5}|\*)")
_SHA256 = re.compile(r"[0-9a-f]{64}")
StructT = TypeVar("StructT", bound=msgspec.Struct)
_NUMBER_KEYS = frozenset({"max_queued", "max_sessions_per_key"})
_PATH_KEYS = frozenset({"key_file", "api_keys_file", "state_dir"})


class CoordinatorConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The `[coordinator]` table; the docstring under a field is its documentation."""

    bind: str = "tcp://127.0.0.1:5570"
    """Control endpoint the agents connect to."""

    key_file: Path = Path("coordinator.key")
    """Secret CURVE key of the coordinator, made by `edgectl init`; readable by its owner only."""

    http: str = "127.0.0.1:8080"
    """Where the OpenAI-compatible API listens. Another address than loopback needs `api_keys_file`."""

    api_keys_file: Path | None = None
    """One SHA-256 of an API key per line, in hex. None: no key is asked for."""

    bulk_bind: str = ""
    """Endpoint at which devices without the model fetch their layers. Empty: a free port at the host of `bind`."""

    bulk_rate: str = ""
    """Most bytes per second of that, over all devices, like "20 MB". Empty: no limit."""

    max_queued: int = 64
    """Requests that wait for a row; one more is answered with 429."""

    max_sessions_per_key: int = 0
    """Requests of one API key that run or wait at a time; one more is answered with 429. 0: no limit."""

    state_dir: Path | None = None
    """Where the start counter is kept. Default: $STATE_DIRECTORY, else $XDG_STATE_HOME/edgectl."""


class DeviceConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One `[[devices]]` table: a device that may join, and the key that proves it is this one."""

    name: str
    """The `name` of the device's agent.toml."""

    key: str
    """Public CURVE key printed by `edge-agent init` there, 40 characters of z85."""


class ClusterConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A cluster: its coordinator and its devices, the source of the default plan first."""

    coordinator: CoordinatorConfig = CoordinatorConfig()
    devices: tuple[DeviceConfig, ...] = ()
    links: tuple[LinkConfig, ...] = ()
    """Links that are emulated; none in a cluster that serves anybody but its owner's curiosity."""

    def device_names(self) -> tuple[str, ...]:
        return tuple(device.name for device in self.devices)

    def settings(self, bulk: BulkSource | None = None) -> ClusterSettings:
        """What the file says beside devices and addresses; `bulk` is where the coordinator gives weights away."""
        return ClusterSettings(
            links=shapes_of(self.links),
            channels=channels_of(self.links),
            bulk=bulk,
            max_queued=self.coordinator.max_queued,
            max_sessions_per_key=self.coordinator.max_sessions_per_key,
        )


class HttpAddress(NamedTuple):
    host: str
    port: int

    @property
    def url(self) -> str:
        """What a client on this machine can open."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


def find_cluster_file(given: Path | None, env: Mapping[str, str], directory: Path = Path()) -> Path:
    """The file of `--cluster`, else ./cluster.toml, else the configuration directories'. Raises ConfigError."""
    if given is not None:
        if not given.is_file():
            raise ConfigError(f"{given}: no such file; `edgectl init` makes one")
        return given
    places = cluster_file_places(env, directory)
    for place in places:
        if place.is_file():
            return place
    looked = ", ".join(str(place) for place in places)
    raise ConfigError(f"no {FILE_NAME} (looked for {looked}); `edgectl init` makes one, --cluster names another")


def cluster_file_places(env: Mapping[str, str], directory: Path = Path()) -> tuple[Path, ...]:
    """Where cluster.toml is looked for without `--cluster`, in order."""
    home = env.get("XDG_CONFIG_HOME") or str(Path(env.get("HOME", "~")).expanduser() / ".config")
    return directory / FILE_NAME, Path(home) / "edgectl" / FILE_NAME, Path("/etc/edgectl") / FILE_NAME


def load_config(path: Path, env: Mapping[str, str], flags: Mapping[str, str | None] | None = None) -> ClusterConfig:
    """The cluster of a file; `flags` override keys of `[coordinator]`, those that are None were not given.

    Relative paths of the file are relative to the file, those of flags and environment to the working directory.
    Raises ConfigError naming the source and the key and, for an unknown key, the nearest known one.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as problem:
        raise ConfigError(f"{path}: {problem}") from problem
    _refuse_unknown(str(path), "", raw, ClusterConfig)
    table = raw.get("coordinator", {})
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: coordinator: expected a table, [coordinator]")
    config = ClusterConfig(
        coordinator=_coordinator(path, table, env, flags or {}),
        devices=_tables(str(path), raw, "devices", DeviceConfig),
        links=tuple(_beside(path, link) for link in _tables(str(path), raw, "links", LinkConfig)),
    )
    _check_devices(str(path), config.devices)
    check_links(str(path), config.links, config.device_names())
    return config


def parse_http(text: str) -> HttpAddress:
    """`host:port`, IPv6 hosts in brackets. Raises ValueError."""
    parts = urlsplit(f"//{text}")
    if parts.hostname is None or parts.port is None or parts.path:
        raise ValueError(f"{text!r} is not host:port, like 127.0.0.1:8080")
    return HttpAddress(parts.hostname, parts.port)


def check_endpoint(text: str) -> str:
    """The control endpoint itself, `tcp://host:port`. Raises ValueError."""
    if not _ENDPOINT.fullmatch(text):
        raise ValueError(f"{text!r} is not an endpoint, like tcp://0.0.0.0:5570")
    return text


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def load_api_keys(path: Path) -> frozenset[str]:
    """SHA-256 digests of the API keys, hex. Empty lines and lines with # are comments. Raises ConfigError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        raise ConfigError(f"{path}: {problem}") from problem
    digests = set()
    for number, line in enumerate(lines, start=1):
        digest = line.split("#", 1)[0].strip().lower()
        if not digest:
            continue
        if not _SHA256.fullmatch(digest):
            # The line itself is not shown: it may be an API key that somebody forgot to hash.
            raise ConfigError(f"{path}:{number}: not a SHA-256 in hex; write the output of `printf %s KEY | sha256sum`")
        digests.add(digest)
    if not digests:
        raise ConfigError(f"{path}: holds no API key")
    return frozenset(digests)


def state_directory(config: CoordinatorConfig, env: Mapping[str, str]) -> Path:
    """Where the coordinator keeps what must survive a restart."""
    if config.state_dir is not None:
        return config.state_dir
    if env.get("STATE_DIRECTORY"):
        return Path(env["STATE_DIRECTORY"].split(":")[0])
    home = env.get("XDG_STATE_HOME") or str(Path(env.get("HOME", "~")).expanduser() / ".local" / "state")
    return Path(home) / "edgectl"


def _coordinator(
    path: Path, table: dict[str, Any], env: Mapping[str, str], flags: Mapping[str, str | None]
) -> CoordinatorConfig:
    values: dict[str, Any] = {"key_file": path.parent / "coordinator.key"}
    sources: dict[str, str] = {}
    from_env = {key[len(ENV_PREFIX) :].lower(): value for key, value in env.items() if key.startswith(ENV_PREFIX)}
    given = {key: value for key, value in flags.items() if value is not None}
    layers: tuple[tuple[str, Mapping[str, Any], Path], ...] = (
        (str(path), table, path.parent),
        ("environment", from_env, Path()),
        ("command line", given, Path()),
    )
    for source, settings, base in layers:
        _refuse_unknown(
            source, ENV_PREFIX.lower() if source == "environment" else "coordinator.", settings, CoordinatorConfig
        )
        for key, value in settings.items():
            is_path = key in _PATH_KEYS and isinstance(value, str)
            is_number = source == "environment" and key in _NUMBER_KEYS and value.isdigit()
            values[key] = base / Path(value).expanduser() if is_path else int(value) if is_number else value
            sources[key] = source
    config = _typed(values, CoordinatorConfig, str(path), "coordinator.")
    for key in ("max_queued", "max_sessions_per_key"):
        if not 0 <= getattr(config, key) <= MAX_SESSIONS_LIMIT:
            place = f"{sources.get(key, path)}: coordinator.{key}"
            raise ConfigError(f"{place}: {getattr(config, key)} is outside 0 to {MAX_SESSIONS_LIMIT}")
    try:
        parse_http(config.http)
    except ValueError as problem:
        raise ConfigError(f"{sources.get('http', path)}: coordinator.http: {problem}") from problem
    try:
        check_endpoint(config.bind)
    except ValueError as problem:
        raise ConfigError(f"{sources.get('bind', path)}: coordinator.bind: {problem}") from problem
    return config


def _tables(source: str, raw: Mapping[str, Any], key: str, struct: type[StructT]) -> tuple[StructT, ...]:
    """An array of tables, each checked against its struct."""
    tables = raw.get(key, [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ConfigError(f"{source}: {key}: expected an array of tables, [[{key}]]")
    for index, table in enumerate(tables):
        _refuse_unknown(source, f"{key}[{index}].", table, struct)
    return tuple(_typed(table, struct, source, f"{key}[{index}].") for index, table in enumerate(tables))


def _beside(path: Path, link: LinkConfig) -> LinkConfig:
    """With the trace of its channel as a path from here: in the file it is one from the file."""
    if not link.channel:
        return link
    return msgspec.structs.replace(link, channel=str(path.parent / Path(link.channel).expanduser()))


def _check_devices(source: str, devices: Sequence[DeviceConfig]) -> None:
    names: set[str] = set()
    owners: dict[str, str] = {}
    for index, device in enumerate(devices):
        where = f"{source}: devices[{index}]"
        if not DEVICE_NAME.fullmatch(device.name):
            raise ConfigError(f"{where}.name: {device.name!r}; use lower-case letters, digits, dot, dash (at most 63)")
        if not Z85_KEY.fullmatch(device.key):
            raise ConfigError(
                f"{where}.key: device {device.name} needs a public key of 40 z85 characters, got {len(device.key)}; "
                "`edge-agent init` on that device prints it"
            )
        if device.name in names:
            raise ConfigError(f"{where}.name: device {device.name} is listed twice")
        if device.key in owners:
            raise ConfigError(
                f"{where}.key: {device.name} has the key of {owners[device.key]}; every device has its own"
            )
        names.add(device.name)
        owners[device.key] = device.name


def _refuse_unknown(source: str, prefix: str, table: Mapping[str, Any], struct: type[msgspec.Struct]) -> None:
    known = struct.__struct_encode_fields__
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            advice = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}"
            raise ConfigError(f"{source}: unknown key {prefix}{key}; {advice}")


def _typed(values: Mapping[str, Any], struct: type[StructT], source: str, prefix: str) -> StructT:
    try:
        return msgspec.convert(dict(values), struct, dec_hook=_path_hook)
    except msgspec.ValidationError as problem:
        message, _, place = str(problem).partition(" - at `$")
        raise ConfigError(f"{source}: {prefix}{place.strip('.`')}: {message}") from problem


def _path_hook(kind: type, value: Any) -> Any:
    if kind is Path and isinstance(value, Path):
        return value
    raise TypeError(f"expected a path, got {type(value).__name__}")
