"""From the options of `edgectl plan` to a PlanRequest: which numbers are planned with, and where they came from.

Flag before testbed file before default. Devices come from --profile, --testbed or --devices; with none of them from the
newest profile of the model, and without one from this machine alone, measured quickly. Never from a testbed by itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from agent.errors import BadCheckpoint, ConfigError
from edgectl.planning import DEFAULT_BLOCK_SIZE, DEFAULT_CONTEXT_TOKENS
from edgectl.profiled_model import ProfiledModel, profiled_model
from planner.answer import PlanRequest
from planner.errors import BadConfigField, BadProfile
from planner.model_spec import parse_config
from planner.profile import ClusterProfile
from planner.types import Codec, Quantization
from planner.workload import Objective, Privacy, Workload

DEFAULT_QUANTIZATION: Quantization = "int4"
"""What fits on small devices, where nothing else says."""
AUTO_SESSIONS = 16
"""Most sessions that `--batch auto` puts together, unless a testbed says: more never share a home's devices."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """The flags; None was not given."""

    model: str
    profile: Path | None = None
    testbed: str | None = None
    devices: str | None = None
    links: Path | None = None
    cluster: Path | None = None
    objective: Objective = "latency"
    source: str | None = None
    privacy: Privacy = "source-first"
    prompt: int | None = None
    tokens: int | None = None
    batch: int | None = None
    context: int | None = None
    quantization: Quantization | None = None
    block_size: int | None = None
    codec: Codec | None = None
    replicas: bool = False
    pareto: bool = False


@dataclass(frozen=True, slots=True)
class PlanInputs:
    """What is planned with, and what a person should know about it."""

    request: PlanRequest
    said: tuple[str, ...] = ()
    title: str = ""
    """Where devices and times come from, for the answer's first line."""


MeasureHere = Callable[[ProfiledModel, Quantization, int], ClusterProfile]
"""(model, quantization, block size) → this machine alone, measured now."""


def resolve(options: PlanOptions, env: Mapping[str, str], measure_here: MeasureHere) -> PlanInputs:
    """Raises ValueError naming a flag, ConfigError for a file, PlannerError for what it says."""
    given = [name for name in ("profile", "testbed", "devices") if getattr(options, name) is not None]
    if len(given) > 1:
        raise ValueError(" and ".join(f"--{name}" for name in given) + " both say which devices there are; give one")
    for name in ("prompt", "tokens", "batch", "context", "block_size"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, it is {value}")
    for name in ("model", "source"):
        # As from a variable of the shell that is not set.
        if getattr(options, name) == "":
            raise ValueError(f"--{name} is empty")
    if options.testbed is not None:
        inputs = _from_testbed(options)
    elif options.devices is not None:
        inputs = _from_devices(options)
    else:
        inputs = _from_measurements(options, env, measure_here)
    inputs = replace(inputs, said=(*_not_runnable(options.model), *inputs.said))
    return _with_links(options, inputs)


def _not_runnable(model: str) -> tuple[str, ...]:
    """What a person should know who plans in order to serve."""
    from planner.catalog import find_model, model_names

    if Path(model).expanduser().exists() or model.lower() not in model_names():
        return ()
    found = find_model(model)
    return () if found.runnable else (f"{found.name} is for planning alone: {found.note}",)


# --- where devices come from ------------------------------------------------------------------------------------------


def _from_testbed(options: PlanOptions) -> PlanInputs:
    from planner.testbed import load_testbed

    assert options.testbed is not None
    testbed = load_testbed(options.testbed, options.model)
    if options.quantization not in (None, testbed.profile.quantization):
        raise ValueError(
            f"--quantize {options.quantization}: testbed {testbed.name} has times of "
            f"{testbed.profile.quantization} weights alone; --devices plans with estimates for others"
        )
    request = _request(options, testbed.profile, testbed.defaults, testbed.source)
    return PlanInputs(request, title=f"testbed {testbed.name} ({testbed.title})")


def _from_devices(options: PlanOptions) -> PlanInputs:
    from planner.catalog import parse_device_list
    from planner.estimate import estimated_profile
    from planner.links import lan_links

    assert options.devices is not None
    model = model_of(options.model)
    devices = parse_device_list(options.devices)
    workload = Workload(
        quantization=options.quantization or DEFAULT_QUANTIZATION,
        block_size=options.block_size or DEFAULT_BLOCK_SIZE,
    )
    links = lan_links([name for name, _ in devices])
    profile = estimated_profile(model.name, model.spec, devices, links, workload)
    said = "times are estimates from data sheets; `edgectl profile` measures them"
    if options.links is None and len(devices) > 1:
        said += "\nlinks are taken as Gigabit Ethernet; --links FILE says otherwise"
    return PlanInputs(
        _request(options, profile, None, None), said=tuple(said.splitlines()), title="devices of the catalogue"
    )


def _from_measurements(options: PlanOptions, env: Mapping[str, str], measure_here: MeasureHere) -> PlanInputs:
    """--profile, else the newest of the model, else this machine."""
    from edgectl.profile_store import load_profile, newest_profile, profiles_directory

    model = model_of(options.model)
    if options.profile is not None:
        path, profile = options.profile, load_profile(options.profile)
        check_model(profile, model, path)
    else:
        stored = newest_profile(profiles_directory(env, options.cluster), model.name, options.quantization)
        if stored is None:
            return _from_this_machine(options, model, measure_here)
        path, profile = stored
        check_model(profile, model, path)
    title = f"profile {path.name}" + (f" of {profile.created}" if profile.created else "")
    return PlanInputs(_request(options, profile, None, None), said=stale_reasons(profile), title=title)


def _from_this_machine(options: PlanOptions, model: ProfiledModel, measure_here: MeasureHere) -> PlanInputs:
    quantization = options.quantization or DEFAULT_QUANTIZATION
    profile = measure_here(model, quantization, options.block_size or DEFAULT_BLOCK_SIZE)
    said = (
        f"no profile of {model.name}: planned for this machine alone, measured quickly; "
        "`edgectl profile` measures a cluster, --devices or --testbed name one"
    )
    return PlanInputs(_request(options, profile, None, None), said=(said,), title="this machine, measured now")


def model_of(text: str) -> ProfiledModel:
    """A name of the catalogue, a model directory, or a config.json. Raises BadCheckpoint and PlannerError."""
    path = Path(text).expanduser()
    if path.is_file():
        return profiled_model(str(path.parent)) if path.name == "config.json" else _of_file(path)
    if not path.is_dir() and (path.suffix == ".json" or path.name != text):
        raise BadCheckpoint(f"{path}: no such file; --model takes a name, a model directory or its config.json")
    return profiled_model(text)


def _of_file(path: Path) -> ProfiledModel:
    try:
        config = path.read_text(encoding="utf-8")
        values = json.loads(config)
    except (OSError, ValueError) as problem:
        raise BadCheckpoint(f"{path}: not a config.json: {problem}") from problem
    if not isinstance(values, dict):
        raise BadConfigField("the file", "must hold an object")
    return ProfiledModel(path.stem, config, parse_config(values))


def check_model(profile: ClusterProfile, model: ProfiledModel, path: Path) -> None:
    """Raises BadProfile for a profile of another model."""
    if profile.model != model.name:
        raise BadProfile(
            f"{path}: model", f"is {profile.model}, the plan is for {model.name}; `edgectl profile --model` measures it"
        )
    if profile.spec != model.spec:
        raise BadProfile(
            f"{path}: spec", f"describes another {model.name} than its config.json does now; measure again"
        )


def stale_reasons(profile: ClusterProfile) -> tuple[str, ...]:
    """Why the profile's numbers may no longer hold, where this machine can tell."""
    from datetime import datetime, timezone
    from importlib.metadata import version

    from agent.device.fingerprint import fingerprint
    from agent.device.sensors.host import boot_id
    from edgectl.profile_store import fingerprints_here, staleness

    host = boot_id()
    here = fingerprint()[0] if any(device.host == host for device in profile.devices) else {}
    now = fingerprints_here(profile, here, host)
    reasons = staleness(profile, now, version=version("edgectl"), at=datetime.now(timezone.utc))
    return tuple(f"stale: {reason}" for reason in reasons)


# --- what is asked of them --------------------------------------------------------------------------------------------


def _request(
    options: PlanOptions, profile: ClusterProfile, defaults: Workload | None, source: str | None
) -> PlanRequest:
    """Flags over the testbed's settings over the defaults."""
    free_source = options.privacy == "none" and options.source is None
    return PlanRequest(
        profile=profile,
        workload=_workload(options, profile, defaults or _defaults(options, profile)),
        objective=options.objective,
        source=None if free_source else options.source or source,
        privacy=options.privacy,
        batch=options.batch,
        replicas=options.replicas,
        pareto=options.pareto,
    )


def _defaults(options: PlanOptions, profile: ClusterProfile) -> Workload:
    standard = Workload(quantization=profile.quantization)
    wanted = (options.prompt or standard.prompt) + (options.tokens or standard.tokens)
    positions = profile.spec.max_positions
    return Workload(
        quantization=profile.quantization,
        block_size=profile.block_size,
        boundary=profile.boundary,
        codec=profile.boundary,
        sessions=AUTO_SESSIONS if options.objective == "throughput" or options.pareto else 1,
        context=min(max(DEFAULT_CONTEXT_TOKENS, wanted), max(positions, standard.prompt + standard.tokens)),
    )


def _workload(options: PlanOptions, profile: ClusterProfile, defaults: Workload) -> Workload:
    values = {
        "quantization": options.quantization,
        "block_size": options.block_size,
        "codec": options.codec,
        "prompt": options.prompt,
        "tokens": options.tokens,
        "sessions": options.batch,
        "context": options.context,
    }
    workload = replace(defaults, **{name: value for name, value in values.items() if value is not None})  # type: ignore[arg-type]
    if workload.context > profile.spec.max_positions:
        raise ValueError(
            f"--context {workload.context} exceeds the {profile.spec.max_positions} positions of {profile.model}"
        )
    return workload


def _with_links(options: PlanOptions, inputs: PlanInputs) -> PlanInputs:
    """Links of --links instead of those that are known. Raises ConfigError and BadLinks."""
    if options.links is None:
        return inputs
    from planner.errors import BadLinks
    from planner.links import parse_links

    try:
        text = options.links.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        reason = problem.strerror if isinstance(problem, OSError) else str(problem)
        raise ConfigError(f"--links {options.links}: {reason}") from problem
    profile = inputs.request.profile
    # Estimated devices came with assumed links: a file that is there says all of them.
    known = () if options.devices is not None else profile.links
    try:
        links = parse_links(text, [device.name for device in profile.devices], known)
    except BadLinks as problem:
        raise BadLinks(str(options.links), str(problem).removeprefix("links: ")) from problem
    return replace(inputs, request=replace(inputs.request, profile=replace(profile, links=links)))
