"""Logits to a token: a pure function of (logits, parameters, seed, position, tokens generated so far).

Rules, in this order:
1. `logit_bias` is added; a token generated c > 0 times loses `c * frequency_penalty + presence_penalty`.
2. Temperature 0 takes the highest logit; of equal ones the lowest id.
3. Otherwise tokens are ordered by falling logit, equal ones by rising id. `top_k` (0: off) keeps the first k; `top_p`
   then keeps the shortest head whose share of what is left is at least `top_p`. One token is always kept.
4. A uniform number, Philox keyed by (seed, position), picks from the cumulated probabilities in that order.
5. Log-probabilities are the model's own, before bias, penalties, temperature and cuts (as vLLM reports them): they do
   not depend on how one samples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from agent.compute.philox import uniform

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Ids = NDArray[np.int64]

SAMPLING_STREAM = 0x53414D50
"""Keeps these draws apart from those of losses and noise; "SAMP"."""

_HEAD_WIDTHS = (4.0, 12.0, math.inf)
"""Log-probability below the best token up to which tokens are sorted: sorting a whole vocabulary is rarely needed."""
_MOST_SORTED = 768
"""A longer head is put into bins first and only one bin of it is sorted."""
_BINS = 1024
_BINNED_WIDTH = 16.0
"""Log-probability below the best token that the bins cover evenly; whatever is less likely is in the last one."""


class SamplingParams(Protocol):
    """The fields of `Sampling` in the wire's messages, which this package must not import."""

    @property
    def seed(self) -> int: ...
    @property
    def temperature(self) -> float: ...
    @property
    def top_p(self) -> float: ...
    @property
    def top_k(self) -> int: ...
    @property
    def presence_penalty(self) -> float: ...
    @property
    def frequency_penalty(self) -> float: ...
    @property
    def logit_bias(self) -> Sequence[tuple[int, float]]: ...
    @property
    def logprobs(self) -> bool: ...
    @property
    def top_logprobs(self) -> int: ...


class Sampled(NamedTuple):
    """A token; its log-probability and the likeliest tokens with theirs where they were asked for."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class CannotSample(ValueError):
    """The logits hold NaN or no finite highest value, or a parameter is out of range: no token would be right."""


def check_params(params: SamplingParams, vocab_size: int) -> None:
    """Raises CannotSample naming the parameter that no logits of this vocabulary can be sampled with."""
    if not 0 <= params.temperature < math.inf:
        raise CannotSample(f"temperature {params.temperature} is not a number from 0 up")
    if not 0 < params.top_p <= 1:
        raise CannotSample(f"top_p {params.top_p} is not in (0, 1]")
    if params.top_k < 0:
        raise CannotSample(f"top_k {params.top_k} is negative; 0 turns it off")
    if not 0 <= params.top_logprobs <= vocab_size:
        raise CannotSample(f"top_logprobs {params.top_logprobs} is not from 0 to {vocab_size}")
    if not (math.isfinite(params.presence_penalty) and math.isfinite(params.frequency_penalty)):
        raise CannotSample("presence_penalty and frequency_penalty must be finite")
    for token, bias in params.logit_bias:
        if not (0 <= token < vocab_size and math.isfinite(bias)):
            raise CannotSample(f"logit_bias of {bias} for token {token}: tokens are 0 to {vocab_size - 1}")


def sample(logits: Float32, params: SamplingParams, position: int, counts: Mapping[int, int]) -> Sampled:
    """Choose the token at `position` from `logits` [vocabulary], which are left as they are.

    `counts` says how often each token was generated so far; it is read only when a penalty is set. Raises CannotSample.
    """
    check_params(params, logits.shape[0])
    adjusted = _adjusted(logits, params, counts)
    best = int(adjusted.argmax())
    # argmax stops at the first NaN, so this one look finds it wherever it is.
    if not math.isfinite(adjusted[best]):
        raise CannotSample(f"logits at position {position}: token {best} has {adjusted[best]}; nothing to choose from")
    token = best if params.temperature == 0 else _draw(adjusted, best, params, position)
    if not params.logprobs:
        return Sampled(token)
    return _with_logprobs(token, logits, params.top_logprobs)


def _adjusted(logits: Float32, params: SamplingParams, counts: Mapping[int, int]) -> Float32:
    changes: dict[int, float] = {}
    for token, bias in params.logit_bias:
        changes[token] = changes.get(token, 0.0) + bias
    if params.presence_penalty or params.frequency_penalty:
        for token, count in counts.items():
            if count > 0:
                penalty = count * params.frequency_penalty + params.presence_penalty
                changes[token] = changes.get(token, 0.0) - penalty
        if changes and not (min(changes) >= 0 and max(changes) < logits.shape[0]):
            raise CannotSample(f"token {max(changes)} was counted; tokens are 0 to {logits.shape[0] - 1}")
    if not changes:
        return logits
    adjusted: Float32 = logits.copy()
    ids = np.fromiter(changes.keys(), np.int64, len(changes))
    adjusted[ids] = logits[ids] + np.fromiter(changes.values(), np.float64, len(changes))
    return adjusted


def _draw(logits: Float32, best: int, params: SamplingParams, position: int) -> int:
    """One token by the rules 3 and 4."""
    share = uniform(params.seed, position, SAMPLING_STREAM)
    if 0 < params.top_k < logits.shape[0]:
        ids = _highest(logits, params.top_k)
        cumulated = np.cumsum(_weights(logits[ids], logits[best], params.temperature))
        total = float(cumulated[-1])
        return int(ids[_pick(cumulated, total, params.top_p, share)])
    weights = _weights(logits, logits[best], params.temperature)
    total = float(weights.sum())
    needed = params.top_p * total if params.top_p < 1 else share * total
    is_binned = False
    for width in _HEAD_WIDTHS:
        # A head is a prefix of the whole order and a cumulated sum runs from the left: a wider one changes nothing.
        ids = np.flatnonzero(logits >= float(logits[best]) - width * params.temperature)
        if len(ids) > _MOST_SORTED and not is_binned:
            found = _draw_from_bins(logits, weights, total, params, share)
            if found is not None:
                return found
            is_binned = True
        ids = ids[_falling(logits[ids])]
        cumulated = np.cumsum(weights[ids])
        if cumulated[-1] > needed:
            break
    return int(ids[_pick(cumulated, total, params.top_p, share)])


def _draw_from_bins(
    logits: Float32, weights: Float64, total: float, params: SamplingParams, share: float
) -> int | None:
    """The token that sorting everything would draw, or None where rounding might have a say in which one that is.

    Sums by bins and sums in the whole order differ by rounding only. So a number that lies farther than both can be
    wrong from either edge of its token's part lies in that part, however one sums.
    """
    highest, lowest = float(logits.max()), float(logits.min())
    span = min(_BINNED_WIDTH * params.temperature, highest - lowest)
    with np.errstate(over="ignore", divide="ignore"):
        scale = np.float32(np.float64(_BINS) / span)
    if not np.isfinite(scale):
        return None
    # Every step keeps the order, and equal logits together: a bin is a stretch of the whole order.
    with np.errstate(over="ignore"):
        places = np.minimum((np.float32(highest) - logits) * scale, np.float32(_BINS - 1)).astype(np.int16)
    reached = np.cumsum(np.bincount(places, weights, _BINS))
    tolerance = 4 * len(logits) * float(np.finfo(np.float64).eps) * total

    def find(wanted: float) -> tuple[int, float] | None:
        """The token whose part holds `wanted`, and where its part ends."""
        place = int(np.searchsorted(reached, wanted))
        if place == _BINS:
            return None
        ids = np.flatnonzero(places == place)
        ids = ids[_falling(logits[ids])]
        start = float(reached[place - 1]) if place else 0.0
        ends = start + np.cumsum(weights[ids])
        index = int(np.searchsorted(ends, wanted))
        if index == len(ids):
            return None
        begin = float(ends[index - 1]) if index else start
        if not begin + tolerance < wanted < float(ends[index]) - tolerance:
            return None
        return int(ids[index]), float(ends[index])

    kept = (0, total) if params.top_p == 1 else find(params.top_p * total)
    drawn = None if kept is None else find(share * kept[1])
    return None if drawn is None else drawn[0]


def _pick(cumulated: Float64, total: float, top_p: float, share: float) -> int:
    """Place in the order whose part of the kept probabilities, `total` before `top_p`, holds `share` of them."""
    end = float(cumulated[-1])
    if top_p < 1:
        # Sums in another order may differ in the last bit, so `top_p * total` may lie above the end.
        total = float(cumulated[np.searchsorted(cumulated, min(top_p * total, end))])
        end = total
    # The first place that reaches the end has a weight; those behind it, masked tokens say, may have none.
    last = int(np.searchsorted(cumulated, end))
    return min(int(np.searchsorted(cumulated, share * total, side="right")), last)


def _weights(logits: Float32, highest: np.float32, temperature: float) -> Float64:
    """Probabilities times a constant: 1 for the highest logit."""
    with np.errstate(over="ignore"):  # a tiny temperature sends the others to -inf, and their weight to zero
        weights: Float64 = np.exp((logits.astype(np.float64) - float(highest)) / temperature)
    return weights


def _falling(values: Float32) -> Ids:
    """Indices that sort `values` from high to low and leave equal ones in their order."""
    return np.argsort(-values, kind="stable")


def _highest(logits: Float32, count: int) -> Ids:
    """Ids of the `count` highest logits, in order."""
    if count >= logits.shape[0]:
        return _falling(logits)
    lowest = np.partition(logits, logits.shape[0] - count)[logits.shape[0] - count]
    ids = np.flatnonzero(logits >= lowest)
    return ids[_falling(logits[ids])][:count]


def _with_logprobs(token: int, logits: Float32, top_count: int) -> Sampled:
    highest = float(logits.max())
    shift = highest + math.log(float(np.exp(logits.astype(np.float64) - highest).sum()))
    top = tuple((int(i), float(logits[i]) - shift) for i in _highest(logits, top_count)) if top_count else ()
    return Sampled(token, float(logits[token]) - shift, top)
