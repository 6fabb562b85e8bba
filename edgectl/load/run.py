"""One load from wish to report: look at the server, offer the sessions, look again."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from agent.wire.messages import HEARTBEAT_INTERVAL_S
from edgectl.client import API_KEY_VARIABLE
from edgectl.failures import ExitCode
from edgectl.load.client import Offer, offer_load
from edgectl.load.connection import Server
from edgectl.load.generator import Arrivals, Lengths, Load
from edgectl.load.report import Ran, document
from edgectl.load.summary import Objectives, Outcome
from edgectl.load.target import View, look
from edgectl.output import CommandFailure, progress_bar

DEFAULT_SESSIONS = 100
DEFAULT_CONCURRENCY = 8
MOST_WARM_UP = 20
SETTLE_S = 2 * HEARTBEAT_INTERVAL_S
"""Devices report what they counted once a heartbeat; so long after the last session it is all there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a person asks for; None leaves it to us. Lengths are texts for `Lengths.parse`."""

    url: str
    rate_per_s: float | None = None
    arrivals: Arrivals = "poisson"
    concurrency: int | None = None
    sessions: int | None = None
    seconds: float | None = None
    warm_up: int | None = None
    prompt_tokens: str = "64"
    output_tokens: str = "64"
    vocabulary: int = 1000
    seed: int = 0
    cancel_share: float = 0.0
    retries: int = 0
    slo_ttft_ms: float | None = None
    slo_tpot_ms: float | None = None
    api_keys: tuple[str, ...] = ()
    model: str | None = None
    detailed: bool = False


def run_load(
    wish: Wish, env: Mapping[str, str] = os.environ, settle_s: float = SETTLE_S
) -> tuple[dict[str, Any], list[Outcome]]:
    """The report, and the sessions it counts.

    Raises ValueError for a load that cannot be, ConfigError for a URL that is none, and CommandFailure when the
    server does not answer beforehand.
    """
    keys = _keys(wish.api_keys, env)
    server = Server.of_url(wish.url)
    before = look(wish.url, keys[0] if keys else None)
    offer = offer_of(wish, before, keys)
    cpu_s = time.process_time()
    outcomes, interrupted = asyncio.run(_offered(server, offer))
    cpu_s = time.process_time() - cpu_s
    if not outcomes:
        raise CommandFailure(ExitCode.INTERRUPTED, "interrupted before any session was over")
    warm_up = warm_up_of(wish, len(outcomes))
    time.sleep(max(0.0, settle_s))
    ran = Ran(
        wish.url,
        offer,
        warm_up,
        Objectives(wish.slo_ttft_ms, wish.slo_tpot_ms),
        outcomes,
        before,
        look(wish.url, keys[0] if keys else None),
        cpu_s,
        interrupted,
    )
    report = document(ran, ["edgectl", *sys.argv[1:]], datetime.now(timezone.utc), detailed=wish.detailed)
    return report, [outcome for outcome in outcomes if outcome.number >= warm_up]


async def _offered(server: Server, offer: Offer) -> tuple[list[Outcome], bool]:
    """The sessions that are over, and whether Ctrl-C ended it: what was measured until then is worth a report."""
    stop = asyncio.Event()
    with suppress(NotImplementedError, RuntimeError, ValueError):  # Not in the main thread: nobody presses keys.
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stop.set)
    with progress_bar("sessions") as progress:
        outcomes = await offer_load(
            server, offer, lambda done, offered: progress(done, offer.sessions or offered), stop
        )
    return outcomes, stop.is_set()


def offer_of(wish: Wish, view: View, keys: Sequence[str]) -> Offer:
    """What is offered to the server of `view`. Raises ValueError."""
    closed = wish.rate_per_s is None
    load = Load(
        prompt=Lengths.parse(wish.prompt_tokens),
        output=Lengths.parse(wish.output_tokens),
        context=view.context,
        seed=wish.seed,
        rate_per_s=wish.rate_per_s,
        arrivals=wish.arrivals,
        concurrency=(wish.concurrency or DEFAULT_CONCURRENCY) if closed else None,
        vocabulary=wish.vocabulary,
        cancel_share=wish.cancel_share,
        keys=max(1, len(keys)),
    )
    sessions = wish.sessions
    if sessions is None and wish.seconds is None:
        sessions = DEFAULT_SESSIONS
    if wish.seconds is not None and not 0 < wish.seconds < math.inf:
        raise ValueError(f"{wish.seconds:g} seconds are no time to offer sessions for")
    if wish.warm_up is not None and sessions is not None and wish.warm_up >= sessions:
        raise ValueError(f"{wish.warm_up} sessions of warm-up leave none of {sessions} to count")
    return Offer(
        load=load,
        model=wish.model or view.model,
        sessions=sessions,
        seconds=wish.seconds,
        api_keys=tuple(keys),
        retries=wish.retries,
    )


def warm_up_of(wish: Wish, offered: int) -> int:
    """How many sessions do not count: as wished, but one counts at least; else a tenth, at most MOST_WARM_UP."""
    if wish.warm_up is not None:
        return min(wish.warm_up, offered - 1)
    return min(offered // 10, MOST_WARM_UP)


def _keys(given: Sequence[str], env: Mapping[str, str]) -> tuple[str, ...]:
    """The API keys, one line of printable ASCII each. Raises ValueError."""
    keys = tuple(given) or tuple(filter(None, [env.get(API_KEY_VARIABLE)]))
    for key in keys:
        if not (key.isascii() and key.isprintable() and " " not in key):
            raise ValueError("an API key has a character that no header can carry")
    return keys
