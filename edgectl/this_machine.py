"""This machine as a cluster of one: measured quickly in this process, for `edgectl plan` without a profile."""

from __future__ import annotations

import socket
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

from agent.wire.measure_messages import MeasureDevice
from edgectl.measurements import Task, settings_for
from edgectl.output import progress_bar
from edgectl.profiled_model import ProfiledModel
from planner.profile import ClusterProfile
from planner.types import Quantization

SECONDS = 6.0
"""Long enough for some medians, short enough to wait for."""


def measure_this_machine(model: ProfiledModel, quantization: Quantization, block_size: int) -> ClusterProfile:
    """A profile of one device and no link. Raises AgentError and PlannerError where it cannot be measured."""
    from agent.compute.provider_probe import choose_provider
    from agent.config import AgentConfig
    from agent.measuring import measure_device

    settings = settings_for(
        model.name,
        model.config,
        model.spec,
        quantization=quantization,
        block_size=block_size,
        quick=True,
        seconds=SECONDS,
    )
    name = socket.gethostname().lower() or "this-machine"
    request = settings.request(0, Task(name), None)
    assert isinstance(request, MeasureDevice), "a task without a peer is a device's"
    # Weights are random unless the working directory has the model: no device of a cluster is asked.
    config = AgentConfig(name=name, models_dir=Path())
    with progress_bar("measuring this machine") as progress:
        device = measure_device(
            request, config, choose_provider(config.provider), lambda what, done, total: progress(done, total)
        )
    return ClusterProfile(
        model=model.name,
        spec=model.spec,
        quantization=quantization,
        block_size=block_size,
        boundary=settings.boundary,
        devices=(device,),
        links=(),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        version=version("edgectl"),
    )
