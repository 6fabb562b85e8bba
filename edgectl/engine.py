"""The contract between the HTTP server and whatever makes the tokens.

`server.py` and `generation.py` speak only to these types; `cluster.py` implements them over the devices and
`tests/fakes/fake_engine.py` over a script. Everything here runs on one asyncio loop; no method blocks.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from agent.wire.messages import EndReason, Sampling, Telemetry, TokenEvent
    from edgectl.adaptive.report import SplitReport
    from planner.model_spec import ModelSpec


class EngineError(Exception):
    """A session could not be opened or was lost; `code` is a key of `edgectl.failures.FAILURES`.

    `detail` may name devices and places of ours: it goes to the log, not to the client. `retry_after_s` overrides
    the table's advice of when to try again.
    """

    def __init__(self, code: str, detail: str, retry_after_s: float | None = None) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail
        self.retry_after_s = retry_after_s


PATIENCE_S = 30.0
"""In how many seconds the first token of a request of priority 0 is due."""
PRIORITY_STEP_S = 1.0
"""A priority higher by one is due this much later: a deadline, so that nobody is passed over for ever."""
MAX_PRIORITY = 1000


@dataclass(frozen=True, slots=True)
class Claim:
    """Whose a session is, and how urgent: what decides who gets a free row."""

    key: str = ""
    """Digest of the API key; keys take turns. Empty where none is asked for."""
    priority: int = 0
    """Lower is sooner, -MAX_PRIORITY to MAX_PRIORITY."""

    def due_s(self, now: float) -> float:
        return now + PATIENCE_S + self.priority * PRIORITY_STEP_S


ANYBODY = Claim()


@dataclass(frozen=True, slots=True)
class Health:
    """Whether a session opened now would run."""

    ready: bool
    devices_connected: int
    devices_expected: int
    detail: str
    """One sentence for a person: "ready" or what is missing, and which devices are not heard."""


@dataclass(frozen=True, slots=True)
class ServerLoad:
    """How full a server is."""

    rows: int
    """Sessions that can run at a time, now."""
    rows_in_use: int
    queued_by_key: Mapping[str, int]
    """Sessions that wait, by `Claim.key`; keys of which none waits are not there."""
    expected_wait_s: float | None
    """How long a session that came now would wait for a row; None where nothing is known yet."""


class Generation(Protocol):
    """One session: its tokens in index order, then a reason."""

    def __aiter__(self) -> AsyncIterator[TokenEvent]:
        """Token events with indices 0, 1, 2, …, each once, at most `max_tokens`; iterated once.

        A stop id ends the iteration and is not among the events. Raises EngineError when the session fails.
        """
        ...

    @property
    def reason(self) -> EndReason | None:
        """Why it ended; None while it runs and after a failure."""
        ...

    def cancel(self) -> None:
        """Ends the session on its devices. Idempotent, does not wait, harmless after the end.

        An iteration under way stops with reason `cancelled`.
        """
        ...


class Engine(Protocol):
    """A loaded model that sessions can be opened on."""

    @property
    def model(self) -> str:
        """The name clients use."""
        ...

    @property
    def spec(self) -> ModelSpec: ...

    @property
    def context(self) -> int:
        """Most tokens of prompt and answer together."""
        ...

    async def open(
        self,
        prompt: Sequence[int],
        max_tokens: int,
        sampling: Sampling,
        stop_ids: Sequence[int],
        claim: Claim = ANYBODY,
    ) -> Generation:
        """Opens a session; waits at most until a row is free. Raises EngineError (`no_agent`, `queue_full`, …).

        Cancelling the task that waits here withdraws the session.
        """
        ...

    def health(self) -> Health: ...

    def load(self) -> ServerLoad: ...

    def telemetry(self) -> Mapping[str, Telemetry]:
        """Last telemetry of each connected device, by device name; totals since that device's worker started."""
        ...

    def splits(self) -> SplitReport | None:
        """Where splits are that move, and how often they did; None where none can."""
        ...

    def status(self) -> dict[str, object]:
        """What `edgectl status` shows: a JSON object."""
        ...
