"""AgentConfig: what the owner of a device may decide, read once at start and never changed.

Owns the file format of agent.toml. Precedence: command-line flag, then `EDGE_AGENT__<KEY>` in the environment, then the
file, then the default written here. `systemd/agent.toml.example` repeats every field; a test compares the two.
"""

from __future__ import annotations

import difflib
import json
import re
import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import msgspec

from agent.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ENV_PREFIX = "EDGE_AGENT__"
Z85_KEY = re.compile(r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")
"""A CURVE key of 32 bytes as 40 characters of Z85 (ZeroMQ RFC 32)."""

DEVICE_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]i?)?B?", re.IGNORECASE)
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_UNITS |= {f"{prefix}i": 1 << (10 * power) for power, prefix in enumerate("kmgt", start=1)}


def _cache_home() -> Path:
    return Path("~/.cache/edgectl")


class AgentConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One device's settings; the docstring under a field is its documentation."""

    name: str = ""
    """Name of this device in the cluster: lower-case letters, digits, dot, dash. Default: the host name."""

    models_dir: Path = Path("models")
    """Directory of model directories (Hugging Face layout). A model is served by the name of its directory."""

    cache_dir: Path = msgspec.field(default_factory=_cache_home)
    """Content digests of weight files and layers ready to load; may be deleted at any time."""

    cache_limit: str = "100 GiB"
    """Most that layers in `cache_dir` may take; the longest unused go first. "0" keeps none."""

    key_file: Path = Path("agent.key")
    """Secret CURVE key of this device, made by `edge-agent init`; readable by its owner only."""

    bind: str = "tcp://127.0.0.1:5571"
    """Data endpoint other devices connect to. Port 0 takes a free port; host `*` listens on every interface."""

    advertise: str = ""
    """Host name or address other devices reach this one by. Default: the host of `bind`, or for a wildcard the local
    address of the route to the coordinator."""

    bulk_bind: str = ""
    """Endpoint at which other devices of the cluster fetch layers this one keeps. Empty: it gives none away."""

    bulk_rate: str = ""
    """Most bytes per second that fetching layers may take of this device's link, like "20 MB". Empty: no limit."""

    coordinator: str = ""
    """Control endpoint of `edgectl serve`, `tcp://host:port`."""

    coordinator_key: str = ""
    """Public CURVE key of the coordinator, 40 characters, printed by `edgectl init`."""

    threads: int = 0
    """Threads of one layer run. 0: the physical cores this process may use."""

    memory_limit: str = ""
    """Most memory a model may take here, like "6 GiB". Empty: available memory less the larger of 1 GiB and 8 %."""

    provider: Literal["auto", "cpu", "cuda", "tensorrt"] = "auto"
    """Execution provider of ONNX Runtime. `auto` takes CUDA if a real inference passes on it, the CPU otherwise."""

    spinning: bool = False
    """Let ONNX Runtime's threads spin between runs too, not only within them, at the price of busy cores."""

    spin_duration_us: int = 0
    """How long a waiting thread spins before it sleeps. 0: ONNX Runtime's default."""

    board: str = ""
    """Name of this Jetson, like "agx-orin", where the device tree does not tell it, as in a container: it decides which
    power rails are summed. Empty: asked of the device tree."""

    emulate: str = ""
    """File with the times of a device that this agent plays: it computes nothing and takes that device's time instead.
    For trying out plans; the answers mean nothing."""

    jtop: bool = False
    """Ask jetson-stats too for power and clocks. Members of its group `jtop` can become root."""

    log_format: Literal["auto", "json", "text"] = "auto"
    """`auto` writes JSON lines under systemd and key=value elsewhere."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe message that is written."""

    @property
    def memory_limit_bytes(self) -> int:
        """`memory_limit` in bytes, 0 when there is none."""
        return parse_size(self.memory_limit) if self.memory_limit else 0

    @property
    def cache_limit_bytes(self) -> int:
        """`cache_limit` in bytes."""
        return parse_size(self.cache_limit or "0")

    @property
    def bulk_rate_bytes_per_s(self) -> int:
        """`bulk_rate` in bytes per second, 0 when there is no limit."""
        return parse_size(self.bulk_rate or "0")


def parse_size(text: str) -> int:
    """Bytes of "6 GiB", "512MB" or "1048576"; Ki is 1024, k is 1000. Raises ValueError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size; write a number and a unit, like 6 GiB or 512 MB")
    return int(float(match[1]) * _UNITS[(match[2] or "").lower()])


def load_config(
    path: Path | None,
    env: Mapping[str, str],
    flags: Mapping[str, object] | None = None,
) -> AgentConfig:
    """The configuration of this device; a flag that is None was not given.

    Relative paths of the file are relative to the file, those of flags and environment to the working directory.
    Raises ConfigError naming the source, the key and, for an unknown key, the nearest known one.
    """
    file_label = str(path) if path is not None else "configuration"
    file_dir = path.parent if path is not None else Path()
    layers: tuple[tuple[str, Path, Mapping[str, object]], ...] = (
        (file_label, file_dir, {key: getattr(AgentConfig(), key) for key in PATH_KEYS}),
        (file_label, file_dir, _read_toml(path) if path is not None else {}),
        ("environment", Path(), _from_env(env)),
        ("command line", Path(), {key: value for key, value in (flags or {}).items() if value is not None}),
    )
    values: dict[str, object] = {"name": socket.gethostname().lower()}
    sources: dict[str, str] = {}
    for source, base, settings in layers:
        for key, value in settings.items():
            if key not in AgentConfig.__struct_fields__:
                raise ConfigError(_unknown_key(source, key))
            is_path = key in PATH_KEYS and isinstance(value, (str, Path)) and value != ""
            values[key] = str(base / Path(str(value)).expanduser()) if is_path else value
            sources[key] = source
    config = _typed(values, sources)
    for key, problem in _problems(config):
        raise ConfigError(f"{sources.get(key, file_label)}: {key} {problem}")
    return config


def advertised_endpoint(config: AgentConfig, bound: str) -> str:
    """The endpoint others connect to, for the endpoint `bound` that the worker's socket really has.

    For a wildcard host without `advertise` it is the local address of the route to the coordinator; finding it sends
    no packet. Raises ConfigError when there is no such route.
    """
    host, port = split_endpoint(bound)
    host = host.removeprefix("::ffff:")  # how a socket that speaks both protocols writes an IPv4 address
    if config.advertise:
        host = config.advertise
    elif _is_wildcard(host):
        host = _address_towards(config.coordinator)
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def split_endpoint(endpoint: str) -> tuple[str, int]:
    """Host without brackets and port of `tcp://host:port`; the port `*` is 0. Raises ValueError."""
    scheme, separator, address = endpoint.partition("://")
    host, colon, port = address.rpartition(":")
    if scheme != "tcp" or not separator or not colon or not host or not (port == "*" or port.isdecimal()):
        raise ValueError(f"{endpoint!r} is not of the form tcp://host:port")
    if port != "*" and int(port) > 65535:
        raise ValueError(f"{endpoint!r} has a port above 65535")
    return host.removeprefix("[").removesuffix("]"), 0 if port == "*" else int(port)


def toml_text(values: Mapping[str, str | int | bool]) -> str:
    """The lines of a TOML table of plain values, as `edge-agent init` writes them."""
    # JSON spells numbers, booleans and strings like TOML, which only wants DEL escaped and surrogate pairs unescaped.
    return "".join(
        f"{key} = {json.dumps(value, ensure_ascii=False)}\n".replace("\x7f", "\\u007f") for key, value in values.items()
    )


PATH_KEYS = frozenset({"models_dir", "cache_dir", "key_file", "emulate"})


def _read_toml(path: Path) -> dict[str, object]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as problem:
        raise ConfigError(f"{path}: cannot be read: {problem.strerror}") from problem
    except UnicodeDecodeError as problem:
        raise ConfigError(f"{path}: not UTF-8 at byte {problem.start}") from problem
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as problem:
        raise ConfigError(f"{path}: not TOML: {problem}") from problem


def _from_env(env: Mapping[str, str]) -> dict[str, object]:
    return {key.removeprefix(ENV_PREFIX).lower(): value for key, value in env.items() if key.startswith(ENV_PREFIX)}


def _unknown_key(source: str, key: str) -> str:
    near = difflib.get_close_matches(key, AgentConfig.__struct_fields__, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(AgentConfig.__struct_fields__)}"
    spelled = f"{ENV_PREFIX}{key.upper()}" if source == "environment" else key
    return f"{source}: unknown key {spelled}; {hint}"


def _typed(values: dict[str, object], sources: dict[str, str]) -> AgentConfig:
    """Values to fields, each alone so that an error names its source; only environment strings are coerced."""
    typed = {}
    for field in msgspec.structs.fields(AgentConfig):
        if field.name not in values:
            continue
        source = sources.get(field.name, "default")
        try:
            typed[field.name] = msgspec.convert(
                values[field.name], field.type, strict=source != "environment", dec_hook=_decode_path
            )
        except msgspec.ValidationError as problem:
            raise ConfigError(f"{source}: {field.name}: {problem}") from problem
    return AgentConfig(**typed)


def _decode_path(wanted: type, value: object) -> object:
    if wanted is Path and isinstance(value, str):
        return Path(value)
    raise TypeError(f"expected a path in quotes, got {type(value).__name__}")


def _problems(config: AgentConfig) -> Iterator[tuple[str, str]]:
    """(key, what is wrong with it and the way out), most basic first."""
    if DEVICE_NAME.fullmatch(config.name) is None:
        yield "name", f"is {config.name!r}; use lower-case letters, digits, dot and dash, at most 63"
    if not config.coordinator:
        yield (
            "coordinator",
            'is missing; set it to the control endpoint of edgectl serve, like "tcp://192.168.1.10:5570"',
        )
    for key in ("bind", "coordinator", *(("bulk_bind",) if config.bulk_bind else ())):
        try:
            split_endpoint(getattr(config, key))
        except ValueError as problem:
            yield key, f"is wrong: {problem}"
    if Z85_KEY.fullmatch(config.coordinator_key) is None:
        yield "coordinator_key", "is not a public key of 40 characters; edgectl init prints it"
    if config.threads < 0:
        yield "threads", f"is {config.threads}; 0 means all physical cores"
    if config.spin_duration_us < 0:
        yield "spin_duration_us", f"is {config.spin_duration_us}; 0 means the default of ONNX Runtime"
    if any(character in config.advertise for character in "/ []"):
        yield "advertise", f"is {config.advertise!r}; write a host name or address without scheme and port"
    for key in ("memory_limit", "cache_limit", "bulk_rate"):
        size: str = getattr(config, key)
        try:
            parse_size(size or "0")
        except ValueError as problem:
            yield key, f"is wrong: {problem}"


def _is_wildcard(host: str) -> bool:
    return host in {"*", "0.0.0.0", "::"}


def _address_towards(coordinator: str) -> str:
    """Local address of the route to the coordinator: connecting a datagram socket only looks the route up."""
    host, port = split_endpoint(coordinator)
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(address)
            return str(probe.getsockname()[0])
    except OSError as problem:
        raise ConfigError(
            f"no route to the coordinator {coordinator} ({problem}); set advertise to this device's address"
        ) from problem
