"""A load's report as one JSON document.

Quantities have the names of `edgectl plan`: ms_per_token, time_to_first_token_ms, tokens_per_s, joules_per_token. What
is unknown is null, with the reason beside it.
"""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from edgectl.load.client import Offer
from edgectl.load.stages import between, stages_of, token_time_of
from edgectl.load.summary import Objectives, Outcome, summary, timeline
from edgectl.load.target import View

SCHEMA = 1
NO_POWER = "agents report no power while they serve"
SECRETS = ("--api-key",)

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Ran:
    """A load that was offered."""

    url: str
    offer: Offer
    warm_up: int
    objectives: Objectives
    outcomes: Sequence[Outcome]
    before: View
    after: View
    cpu_s: float
    """Processor time the generator itself took."""
    interrupted: bool = False
    """Ended by the person who started it; sessions under way then are left out."""


def document(ran: Ran, command: Sequence[str], now: datetime, *, detailed: bool = False) -> Json:
    """The whole report; `detailed` adds one object per session. Raises ValueError when no session is counted."""
    outcomes = ran.outcomes
    wall_s = max(o.ended_s for o in outcomes) - min(o.due_s for o in outcomes) if outcomes else 0.0
    added = between(ran.before.totals, ran.after.totals)
    unknown = ran.before.unknown or ran.after.unknown
    whole: Json = {
        "schema": SCHEMA,
        "benchmark": "edgectl bench serve",
        "command": redacted(command),
        "date": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "version": version("edgectl"),
        "machine": machine(),
        "url": ran.url,
        "model": ran.before.model,
        "plan": ran.before.status.get("plan"),
        "load": load_as_json(ran.offer),
        "interrupted": ran.interrupted,
        **summary(outcomes, ran.warm_up, ran.objectives),
        "joules_per_token": None,
        "joules_per_token_unknown": unknown or NO_POWER,
        "predicted": _predicted(ran.after.status),
        "stages": stages_of(added, wall_s),
        "token_time": token_time_of(added),
        "stages_unknown": unknown or None,
        "generator_cpu_share": round(ran.cpu_s / wall_s, 4) if wall_s > 0 else None,
        "timeline": timeline(outcomes),
    }
    if detailed:
        whole["detail"] = [_session(outcome, min(o.due_s for o in outcomes)) for outcome in outcomes]
    return whole


def machine() -> Json:
    """What the generator ran on; the devices may be others."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def redacted(command: Sequence[str]) -> str:
    """The command without its secrets."""
    words = []
    hide = False
    for word in command:
        option, equals, _ = word.partition("=")
        words.append("…" if hide else f"{option}=…" if equals and option in SECRETS else word)
        hide = word in SECRETS
    return " ".join(words)


def load_as_json(offer: Offer) -> Json:
    """What was offered, enough to offer it again."""
    load = offer.load
    return {
        "loop": "open" if load.is_open else "closed",
        "rate_per_s": load.rate_per_s,
        "arrivals": load.arrivals if load.is_open else None,
        "concurrency": load.concurrency,
        "sessions": offer.sessions,
        "seconds": offer.seconds,
        "prompt_tokens": str(load.prompt),
        "output_tokens": str(load.output),
        "vocabulary": load.vocabulary,
        "cancel_share": load.cancel_share,
        "keys": load.keys,
        "retries": offer.retries,
        "seed": load.seed,
    }


def _predicted(status: Json) -> Json | None:
    """What the plan that is served expects; null where serve made it without times."""
    predicted = status.get("predicted")
    if not isinstance(predicted, dict):
        return None
    return {name: value for name, value in predicted.items() if name != "measured_over_predicted"}


def _session(outcome: Outcome, begin_s: float) -> Json:
    return {
        "number": outcome.number,
        "key": outcome.key,
        "due_s": round(outcome.due_s - begin_s, 6),
        "late_ms": _rounded(1e3 * (outcome.sent_s - outcome.due_s)),
        "prompt_tokens": outcome.prompt_tokens,
        "tokens": outcome.tokens,
        "end": outcome.end,
        "problem": outcome.problem,
        "tries": outcome.tries,
        "time_to_first_token_ms": _rounded(outcome.time_to_first_token_ms),
        "ms_per_token": _rounded(outcome.ms_per_token),
        "end_to_end_ms": _rounded(outcome.end_to_end_ms),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else round(value, 3)
