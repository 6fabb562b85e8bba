"""What is asked of a server before and after a load: its model, its plan, and what its devices counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from edgectl.failures import ExitCode
from edgectl.load.stages import DeviceTotals, totals_of
from edgectl.output import CommandFailure

TIMEOUT_S = 30.0
MAX_CONTEXT = 1 << 31
"""Of a server that does not say its context."""

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class View:
    """One look at a server."""

    model: str
    status: Json = field(default_factory=dict)
    """Empty for a server that is no coordinator of ours."""
    totals: Mapping[str, DeviceTotals] = field(default_factory=dict)
    unknown: str = ""
    """Why status or totals are empty."""

    @property
    def context(self) -> int:
        """Positions a session has."""
        context = self._plan.get("context")
        return context if isinstance(context, int) and context > 0 else MAX_CONTEXT

    @property
    def _plan(self) -> Json:
        plan = self.status.get("plan")
        return plan if isinstance(plan, dict) else {}


def look(url: str, api_key: str | None, transport: httpx.BaseTransport | None = None) -> View:
    """Raises CommandFailure when the server does not answer or names no model; the rest may be missing."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    with httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT_S, transport=transport, trust_env=False) as client:
        model = _model(client, url)
        try:
            status = client.get("/edge/v1/status")
            metrics = client.get("/metrics")
        except httpx.HTTPError as problem:
            return View(model, unknown=f"{url} did not say: {problem}")
    try:
        parsed = status.json() if status.status_code == 200 else {}
        totals = totals_of(metrics.text) if metrics.status_code == 200 else {}
    except ValueError as problem:
        return View(model, unknown=f"{url}: status and metrics cannot be read: {problem}")
    if not isinstance(parsed, dict) or not parsed:
        return View(model, unknown=f"{url} is no coordinator: it has no /edge/v1/status")
    return View(model, parsed, totals, "" if totals else f"{url}/metrics names no device")


def _model(client: httpx.Client, url: str) -> str:
    try:
        response = client.get("/v1/models")
        if response.status_code == 200:
            return str(response.json()["data"][0]["id"])
    except httpx.HTTPError as problem:
        raise CommandFailure(
            ExitCode.UNAVAILABLE, f"nothing answers at {url}: {problem}", "start it with `edgectl serve`"
        ) from problem
    except (ValueError, KeyError, IndexError, TypeError) as problem:
        raise CommandFailure(ExitCode.UNAVAILABLE, f"{url}/v1/models names no model") from problem
    hint = "give --api-key, or set EDGE_API_KEY" if response.status_code == 401 else ""
    raise CommandFailure(ExitCode.UNAVAILABLE, f"{url}/v1/models answered HTTP {response.status_code}", hint)
