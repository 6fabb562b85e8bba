"""What arrival times of tokens say of a pipeline: milliseconds per token of one session, tokens per second of many.

The last token of a session does not count: a source tells of it at once, and of all others only when it has run its own
stage for the next one.
"""

from __future__ import annotations

from collections.abc import Sequence


def ms_per_token(arrivals_s: Sequence[float]) -> float:
    """From the first to the last but one token of a session, decode alone. Raises ValueError for fewer than three."""
    if len(arrivals_s) < 3:
        raise ValueError("a time per token needs three tokens")
    return 1e3 * (arrivals_s[-2] - arrivals_s[0]) / (len(arrivals_s) - 2)


def steady_tokens_per_s(sessions: Sequence[Sequence[float]], skipped: int) -> float:
    """Rate of sessions that run side by side, while all of them run.

    Left out are what comes before every session has `skipped` tokens and one, and what comes after the first session
    has its last but one: the pipeline fills and empties there. Each session counts whole intervals between its own
    tokens, so that where the window begins and ends within a round does not matter. Raises ValueError when too little
    is left.
    """
    if not sessions or min(map(len, sessions)) < skipped + 2:
        raise ValueError(f"sessions of {[len(each) for each in sessions]} tokens, {skipped} of them skipped")
    began_s = max(each[skipped] for each in sessions)
    ended_s = min(each[-2] for each in sessions)
    rate = 0.0
    for session in sessions:
        inside = [arrival_s for arrival_s in session[:-1] if began_s <= arrival_s <= ended_s]
        if len(inside) < 2 or inside[-1] <= inside[0]:
            raise ValueError("a session has fewer than two tokens while all of them run; let them generate more")
        rate += (len(inside) - 1) / (inside[-1] - inside[0])
    return rate
