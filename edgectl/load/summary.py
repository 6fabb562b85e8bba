"""What a load came to: percentiles, rates and goodput of what the generator saw. Pure.

Definitions. Times are the client's, in milliseconds, and begin at the moment a session was *due*, not when it was
sent: a generator or server that falls behind must not hide it ("coordinated omission").

- time to first token: due until the chunk with the first token is here.
- ms per token: first to last token over the tokens after the first; one value per session of two tokens or more.
- ms between tokens: the gap before each chunk behind the first; long ones are what a reader notices.
- end to end: due until the answer is complete.
- Percentiles are exact: of the sorted samples, linear between the two nearest ranks (Hyndman and Fan's definition 7).
- Rates count what happened from the first counted session's due time to the last one's end; the steady rate only while
  sessions were still being offered, so without the running dry at the end.
- Goodput: completed sessions that met both objectives, per second; its share is of all that ended by themselves.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

End = Literal["completed", "cancelled", "refused", "failed"]
"""cancelled: the generator hung up, as it was told to. refused: 429 or 503 before the first token. failed: all else."""

PERCENTS = (50, 95, 99)
MOST_POINTS = 600
"""Of a timeline."""

Json = dict[str, object]


@dataclass(slots=True)
class Outcome:
    """How one session went; moments are seconds of the generator's clock."""

    number: int
    key: int
    prompt_tokens: int
    max_tokens: int
    due_s: float
    sent_s: float = math.nan
    arrivals_s: list[float] = field(default_factory=list)
    """Of every chunk that brought tokens."""
    tokens: int = 0
    ended_s: float = math.nan
    end: End = "failed"
    problem: str = ""
    """HTTP status and code of a refusal or failure."""
    tries: int = 0

    @property
    def time_to_first_token_ms(self) -> float | None:
        return 1e3 * (self.arrivals_s[0] - self.due_s) if self.arrivals_s else None

    @property
    def ms_per_token(self) -> float | None:
        if self.tokens < 2 or len(self.arrivals_s) < 2:
            return None
        return 1e3 * (self.arrivals_s[-1] - self.arrivals_s[0]) / (self.tokens - 1)

    @property
    def end_to_end_ms(self) -> float | None:
        return 1e3 * (self.ended_s - self.due_s) if self.end == "completed" else None


@dataclass(frozen=True, slots=True)
class Objectives:
    """Service level objectives; None is always met."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None

    def met_by(self, outcome: Outcome) -> bool:
        """An answer of one token has no time per token, and so meets that objective."""
        if outcome.end != "completed":
            return False
        first_ms, each_ms = outcome.time_to_first_token_ms, outcome.ms_per_token
        in_time = self.ttft_ms is None or (first_ms is not None and first_ms <= self.ttft_ms)
        return in_time and (self.tpot_ms is None or each_ms is None or each_ms <= self.tpot_ms)


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Of ascending samples: linear between the nearest ranks, `(n - 1) * percent / 100` from 0.

    Raises ValueError without samples and outside 0 to 100.
    """
    if not ordered or not 0 <= percent <= 100:
        raise ValueError(f"percentile {percent} of {len(ordered)} samples")
    rank = (len(ordered) - 1) * percent / 100
    below = int(rank)
    if below + 1 >= len(ordered):
        return ordered[-1]
    return ordered[below] + (rank - below) * (ordered[below + 1] - ordered[below])


def distribution(samples: Iterable[float | None]) -> Json | None:
    """Number of samples, mean, percentiles and maximum; None without samples."""
    ordered = sorted(sample for sample in samples if sample is not None)
    if not ordered:
        return None
    values = {f"p{percent}": percentile(ordered, percent) for percent in PERCENTS}
    found = {"mean": math.fsum(ordered) / len(ordered), **values, "max": ordered[-1]}
    return {"samples": len(ordered), **{name: round(value, 3) for name, value in found.items()}}


def summary(outcomes: Sequence[Outcome], warm_up: int, objectives: Objectives) -> Json:
    """Everything but what the devices say, of the sessions from number `warm_up` on.

    Raises ValueError when no session is counted.
    """
    counted = [outcome for outcome in outcomes if outcome.number >= warm_up]
    if not counted:
        raise ValueError(f"all {len(outcomes)} sessions were warm-up")
    begin_s = min(outcome.due_s for outcome in counted)
    end_s = max(outcome.ended_s for outcome in counted)
    offered_until_s = max(outcome.due_s for outcome in counted)
    seconds = end_s - begin_s
    ends = Counter(outcome.end for outcome in counted)
    met = sum(objectives.met_by(outcome) for outcome in counted)
    judged = len(counted) - ends["cancelled"]
    arrivals = sorted(moment for outcome in outcomes for moment in _moments(outcome))
    over = sum(begin_s <= outcome.ended_s <= offered_until_s for outcome in outcomes)
    return {
        "sessions": {
            "offered": len(counted),
            **{end: ends[end] for end in ("completed", "cancelled", "refused", "failed")},
            "short": sum(o.end == "completed" and o.tokens < o.max_tokens for o in counted),
            "tried_again": sum(outcome.tries > 1 for outcome in counted),
            "warm_up": len(outcomes) - len(counted),
        },
        "problems": dict(Counter(outcome.problem for outcome in counted if outcome.problem).most_common()),
        "seconds": round(seconds, 3),
        "prompt_tokens": sum(outcome.prompt_tokens for outcome in counted if outcome.arrivals_s),
        "tokens": sum(outcome.tokens for outcome in counted),
        "offered_per_s": _rate(len(counted) - 1, offered_until_s - begin_s),
        "over_while_offered_per_s": _rate(over, offered_until_s - begin_s),
        "sessions_per_s": _rate(ends["completed"], seconds),
        "tokens_per_s": _rate(_between(arrivals, begin_s, math.nextafter(end_s, math.inf)), seconds),
        "steady_tokens_per_s": _rate(_between(arrivals, begin_s, offered_until_s), offered_until_s - begin_s),
        "goodput": {
            "slo_ttft_ms": objectives.ttft_ms,
            "slo_tpot_ms": objectives.tpot_ms,
            "sessions_per_s": _rate(met, seconds),
            "share": round(met / judged, 4) if judged else None,
        },
        **_latencies(counted),
        "late_ms": distribution(1e3 * (outcome.sent_s - outcome.due_s) for outcome in counted),
        "most_open": most_open(outcomes),
        "by_key": [_of_key(key, counted, seconds) for key in sorted({outcome.key for outcome in counted})],
    }


def gaps_ms(outcome: Outcome) -> list[float]:
    """Milliseconds before every chunk behind the first."""
    return [1e3 * (later - earlier) for earlier, later in pairwise(outcome.arrivals_s)]


def timeline(outcomes: Sequence[Outcome]) -> list[Json]:
    """tokens/s and sessions open (means) per interval from the first due time on; intervals of 1 s or longer."""
    if not outcomes:
        return []
    begin_s = min(outcome.due_s for outcome in outcomes)
    seconds = max(outcome.ended_s for outcome in outcomes) - begin_s
    width_s = max(1.0, math.ceil(seconds / MOST_POINTS))
    edges_s = [at * width_s for at in range(max(1, math.ceil(seconds / width_s)))] + [seconds]
    arrivals = sorted(moment - begin_s for outcome in outcomes for moment in _moments(outcome))
    open_s = [0.0] * (len(edges_s) - 1)
    for outcome in outcomes:
        due_s, end_s = outcome.due_s - begin_s, outcome.ended_s - begin_s
        for at in range(min(int(due_s / width_s), len(open_s) - 1), len(open_s)):
            if edges_s[at] > end_s:
                break
            open_s[at] += max(0.0, min(end_s, edges_s[at + 1]) - max(due_s, edges_s[at]))
    points: list[Json] = []
    for at, (left_s, right_s) in enumerate(pairwise(edges_s)):
        last = at + 2 == len(edges_s)
        tokens = _between(arrivals, left_s, math.inf if last else right_s)
        width_s = max(right_s - left_s, 1e-9)
        points.append(
            {"s": round(left_s, 3), "tokens_per_s": round(tokens / width_s, 3), "open": round(open_s[at] / width_s, 3)}
        )
    return points


def most_open(outcomes: Sequence[Outcome]) -> int:
    """The most sessions that were due and not over at one time."""
    steps = sorted([(o.due_s, 1) for o in outcomes] + [(o.ended_s, -1) for o in outcomes])
    now = most = 0
    for _, step in steps:
        now += step
        most = max(most, now)
    return most


def _latencies(outcomes: Sequence[Outcome]) -> Json:
    return {
        "time_to_first_token_ms": distribution(outcome.time_to_first_token_ms for outcome in outcomes),
        "ms_per_token": distribution(outcome.ms_per_token for outcome in outcomes),
        "ms_between_tokens": distribution(gap for outcome in outcomes for gap in gaps_ms(outcome)),
        "end_to_end_ms": distribution(outcome.end_to_end_ms for outcome in outcomes),
    }


def _of_key(key: int, counted: Sequence[Outcome], seconds: float) -> Json:
    own = [outcome for outcome in counted if outcome.key == key]
    return {
        "key": key,
        "offered": len(own),
        "completed": sum(outcome.end == "completed" for outcome in own),
        "refused": sum(outcome.end == "refused" for outcome in own),
        "failed": sum(outcome.end == "failed" for outcome in own),
        "tokens_per_s": _rate(sum(outcome.tokens for outcome in own), seconds),
        "time_to_first_token_ms": distribution(outcome.time_to_first_token_ms for outcome in own),
        "ms_per_token": distribution(outcome.ms_per_token for outcome in own),
    }


def _moments(outcome: Outcome) -> Iterable[float]:
    """When each token came. A chunk may bring several: those missing are counted at the last chunk."""
    yield from outcome.arrivals_s
    if outcome.arrivals_s:
        yield from [outcome.arrivals_s[-1]] * (outcome.tokens - len(outcome.arrivals_s))


def _between(ordered: Sequence[float], begin: float, end: float) -> int:
    return bisect_left(ordered, end) - bisect_left(ordered, begin)


def _rate(count: int, seconds: float) -> float | None:
    return round(count / seconds, 3) if seconds > 0 else None
