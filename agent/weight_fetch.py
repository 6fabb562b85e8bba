"""Which bytes of which part to ask whom next: the pure core of fetching weights. No socket, no file, no clock.

Rules
1. Manifests come from the coordinator only, chunks from peers first. The coordinator gives chunks of what no peer can
   give now, and helps where a peer takes longer than SLOW_S for one.
2. All chunks of a tensor are asked of one source as long as it answers, so that a digest that does not match has one
   culprit. It is not asked for anything again; with several contributors the coordinator alone gives the tensor.
3. A source that owes an answer and is silent for SILENCE_S is left alone for a while, and others take its chunks over.
4. What has arrived is never asked again, unless its tensor turns out not to match.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain

from agent.errors import WeightsUnavailable
from agent.fetch_state import (
    BACK_OFF_S,
    LONGEST_BACK_OFF_S,
    ON_DISK,
    Arrival,
    Ask,
    Item,
    ItemState,
    PartState,
    SourceState,
)
from agent.wire.bulk import MAX_CHUNK_BYTES

COORDINATOR = ""
"""Its name among the sources."""
IN_FLIGHT = 8
"""Chunks asked of one source and not there yet: 8 MiB cover a round trip of 60 ms at a gigabit per second."""
PARTS_AHEAD = 4
"""Parts that are open at a time: enough that the next one is being made while this one is on its way."""
MAX_MANIFEST_BYTES = 16 << 20
"""A header of a safetensors file takes about 100 bytes per tensor; no public model has 100,000."""
SLOW_S = 3.0
"""A peer that takes longer for a chunk (a third of a MiB per second) has the coordinator beside it."""
SILENCE_S = 10.0
"""A source says every 2 s that it is still there; a device that is lost is noticed elsewhere."""
CONNECT_S = 2.0
"""How long peers may take to connect before the coordinator is asked in their place."""
PATIENCE_S = 30.0
"""A chunk that takes longer is asked of another source that has nothing to do, though its own be alive."""
LATER_S = 0.5
"""After "it is being made": a layer takes a second or so."""
GIVE_UP_S = 120.0
"""Without bytes from any source or a sign of life of the coordinator: that of a peer alone brings nothing nearer."""
MAX_TRIES = 3
"""Times the coordinator may give a tensor that does not match, or refuse a part, before that is final."""


class FetchCore:
    """Parts wanted, in order; sources; and what is under way. `now` is seconds of a monotonic clock."""

    def __init__(self, parts: Sequence[str], peers: Iterable[str], now: float) -> None:
        self._waiting = deque(parts)
        self._open: dict[str, PartState] = {}
        self._sources = {name: SourceState(heard_s=now) for name in (*peers, COORDINATOR)}
        self._number = 0
        self._began_s = now
        self._alive_s = now
        self.bytes_from: dict[str, int] = dict.fromkeys(self._sources, 0)
        """Bytes of tensors that arrived, by source; those that did not match included."""

    @property
    def distrusted(self) -> list[str]:
        """Peers that nothing is asked of any more."""
        return [name for name, state in self._sources.items() if not state.trusted]

    @property
    def is_done(self) -> bool:
        return not self._waiting and not self._open

    def want(self, parts: Iterable[str], now: float) -> None:
        """These parts as well."""
        self._waiting.extend(parts)
        self._alive_s = now

    # --- what happens ---

    def connected(self, source: str, now: float) -> None:
        state = self._sources[source]
        state.connected, state.heard_s = True, now

    def disconnected(self, source: str, problem: str = "the connection is lost") -> None:
        """What it owed is asked of others at once, or of itself when it is back."""
        state = self._sources[source]
        state.connected, state.problem = False, problem
        self._release(state)

    def on_wait(self, source: str, now: float) -> None:
        """It is alive, and so are its answers."""
        self._heard(source, now)

    def on_chunk(self, source: str, number: int, size_bytes: int, total_bytes: int, now: float) -> Arrival | None:
        """Bytes came; None when they are not wanted (any more)."""
        state = self._heard(source, now)
        ask, _ = state.asked.pop(number, (None, 0.0))
        if ask is None or ask.part not in self._open:
            return None
        part = self._open[ask.part]
        state.back_off_s = BACK_OFF_S
        self._alive_s = now
        if not ask.item:
            return self._on_manifest(ask, part, size_bytes, total_bytes)
        assert part.items is not None, "a tensor was asked for before its manifest was there"
        item = part.items[ask.item]
        if total_bytes != item.size_bytes or size_bytes != ask.length:
            self._put_back(ask, source)
            self._lacks(source, ask, part, f"has {ask.part}: {ask.item} in another shape")
            return None
        self.bytes_from[source] += size_bytes
        item.contributors.add(source)
        item.missing -= 1
        return Arrival(ask.part, ask.item, ask.offset, not item.missing)

    def on_missing(self, source: str, number: int, detail: str, now: float) -> None:
        """It does not have the part. Raises WeightsUnavailable when nobody else could."""
        state = self._heard(source, now)
        ask, _ = state.asked.pop(number, (None, 0.0))
        if ask is None or ask.part not in self._open:
            return
        part = self._open[ask.part]
        self._put_back(ask, source)
        self._lacks(source, ask, part, detail)

    def on_later(self, source: str, number: int, now: float) -> None:
        """The part is being made: by the coordinator. A peer makes none, so one that says so has none."""
        if source != COORDINATOR:
            self.on_missing(source, number, "makes no parts", now)
            return
        state = self._heard(source, now)
        ask, _ = state.asked.pop(number, (None, 0.0))
        if ask is not None and ask.part in self._open:
            self._put_back(ask, source)
            self._open[ask.part].not_before_s[source] = now + LATER_S

    def open_part(self, part: str, items: Sequence[Item], have: Mapping[str, Sequence[int]]) -> list[str]:
        """The manifest of a part is there; `have` are chunks by number that need not be fetched.

        Returns the names of items that are complete already: to be judged as well.
        """
        opened = self._open[part]
        opened.items = {}
        complete = []
        for name, size_bytes in items:
            opened.items[name] = ItemState.of(size_bytes, have.get(name, ()))
            if not opened.items[name].missing:
                complete.append(name)
        if not opened.items:
            del self._open[part]
        return complete

    def judge(self, part: str, name: str, matches: bool) -> str:
        """The digest of a complete item was compared. Returns what to say of one that does not match.

        Raises WeightsUnavailable when the coordinator gave it MAX_TRIES times.
        """
        opened = self._open[part]
        assert opened.items is not None, "judged before its manifest was there"
        item = opened.items[name]
        if matches:
            del opened.items[name]
            if not opened.items:
                del self._open[part]
            return ""
        blamed = item.start_over()
        text = f"{part}: {name} from {_listed(blamed)} does not match its digest"
        if len(blamed) == 1 and blamed[0] in self._sources and blamed[0] != COORDINATOR:
            self.distrust(blamed[0], "gave bytes that do not match their digest")
        elif len(blamed) > 1:
            opened.lacking.update(source for source in blamed if source not in (COORDINATOR, ON_DISK))
        if item.tries > MAX_TRIES or (blamed == [COORDINATOR] and item.tries == MAX_TRIES):
            raise WeightsUnavailable(f"{text}, {item.tries} times; is the coordinator's copy of the model damaged?")
        return text

    # --- what to do ---

    def asks(self, now: float) -> list[Ask]:
        """Requests to send now. Raises WeightsUnavailable when no source has answered for GIVE_UP_S."""
        self._on_time(now)
        while self._waiting and len(self._open) < PARTS_AHEAD:
            self._open[self._waiting.popleft()] = PartState()
        found: list[Ask] = []
        # Peers before the coordinator, which looks at what they leave.
        for name, state in self._sources.items():
            while self._may_ask(state, now) and (ask := self._choose(name, now)) is not None:
                state.asked[ask.number] = (ask, now)
                if len(state.asked) == 1:
                    state.heard_s = now
                found.append(ask)
        return found

    def not_sent(self, ask: Ask) -> None:
        """An Ask could not leave: its connection is lost, or its queue is full."""
        self._sources[ask.source].asked.pop(ask.number, None)
        self._put_back(ask, ask.source)

    def _may_ask(self, state: SourceState, now: float) -> bool:
        return state.connected and state.trusted and now >= state.resting_until_s and len(state.asked) < IN_FLIGHT

    def _choose(self, source: str, now: float) -> Ask | None:
        """The next request of a source that may be asked."""
        for name, part in self._open.items():
            if source in part.lacking or now < part.not_before_s.get(source, now):
                continue
            if part.items is None:
                if source == COORDINATOR and not part.manifest_asked:
                    part.manifest_asked = True
                    return self._ask(source, name, "", part.manifest_bytes, MAX_CHUNK_BYTES)
                continue
            if source == COORDINATOR and self._left_to_peers(part, now):
                # But for what it has begun, and what a peer was too slow for.
                owned = {key: item for key, item in part.items.items() if item.owner == source or item.avoided}
            else:
                owned = part.items
            for key, item in owned.items():
                if (chunk := item.next_chunk(source)) is not None:
                    return self._ask(source, name, key, *chunk)
        return None

    def _left_to_peers(self, part: PartState, now: float) -> bool:
        """Whether peers give this part fast enough."""
        for name, state in self._sources.items():
            if name == COORDINATOR or not state.trusted or name in part.lacking or now < state.resting_until_s:
                continue
            if not state.connected:
                if now - self._began_s < CONNECT_S:
                    return True
            elif all(now - since < SLOW_S for _, since in state.asked.values()):
                return True
        return False

    def _ask(self, source: str, part: str, item: str, offset: int, length: int) -> Ask:
        self._number += 1
        return Ask(source, self._number, part, item, offset, length)

    # --- what goes wrong ---

    def _on_time(self, now: float) -> None:
        idle = [name for name, state in self._sources.items() if self._may_ask(state, now) and not state.asked]
        for state in self._sources.values():
            if state.asked and now - state.heard_s >= SILENCE_S:
                state.resting_until_s = now + state.back_off_s
                state.back_off_s = min(2 * state.back_off_s, LONGEST_BACK_OFF_S)
                state.problem = f"was silent for {SILENCE_S:.0f} s"
                self._release(state)
            else:
                late = [ask for ask, since in state.asked.values() if ask.item and now - since >= PATIENCE_S]
                for ask in late:
                    self._relieve(ask, idle)
        if not self.is_done and now - self._alive_s >= GIVE_UP_S:
            raise WeightsUnavailable(f"no source of weights has answered for {GIVE_UP_S:.0f} s: {self._problems()}")

    def _relieve(self, ask: Ask, idle: Sequence[str]) -> None:
        """Let one of the `idle` sources have a tensor whose source takes too long."""
        part = self._open[ask.part]
        item = (part.items or {})[ask.item]
        if any(name not in part.lacking and name not in item.avoided and name != ask.source for name in idle):
            del self._sources[ask.source].asked[ask.number]
            self._put_back(ask, ask.source)
            item.avoided.add(ask.source)

    def _on_manifest(self, ask: Ask, part: PartState, size_bytes: int, total_bytes: int) -> Arrival | None:
        part.manifest_asked = False
        if total_bytes > MAX_MANIFEST_BYTES:
            raise WeightsUnavailable(f"{ask.part}: manifest of {total_bytes} bytes, at most {MAX_MANIFEST_BYTES}")
        part.manifest_bytes += size_bytes
        return Arrival(ask.part, "", ask.offset, part.manifest_bytes >= total_bytes)

    def _heard(self, source: str, now: float) -> SourceState:
        state = self._sources[source]
        state.heard_s = now
        if source == COORDINATOR:
            self._alive_s = now
        return state

    def _release(self, state: SourceState) -> None:
        """Ask others for what this source owes, and let them have its tensors."""
        for ask, _ in state.asked.values():
            self._put_back(ask, ask.source)
        state.asked.clear()
        # Whoever was slow is better than whoever is gone.
        for item in chain.from_iterable((part.items or {}).values() for part in self._open.values()):
            item.avoided.clear()

    def _put_back(self, ask: Ask, source: str) -> None:
        part = self._open.get(ask.part)
        if part is None:
            return
        if not ask.item:
            part.manifest_asked = False
        elif part.items is not None and ask.item in part.items:
            part.items[ask.item].put_back(ask.offset, source)

    def _lacks(self, source: str, ask: Ask, part: PartState, detail: str) -> None:
        """A peer is not asked for this part again; the coordinator, which makes parts, some times more."""
        self._sources[source].problem = detail
        if source != COORDINATOR:
            part.lacking.add(source)
            part.disown(source)
            return
        part.refusals += 1
        if part.refusals >= MAX_TRIES:
            raise WeightsUnavailable(f"the coordinator does not give {ask.part}: {detail}")
        part.not_before_s[source] = self._alive_s + LATER_S

    def distrust(self, source: str, problem: str) -> None:
        """Whoever gave wrong bytes once gives no more."""
        state = self._sources[source]
        state.trusted = False
        state.problem = problem
        self._release(state)
        for part in self._open.values():
            part.disown(source)

    def _problems(self) -> str:
        return "; ".join(f"{_name(name)} {state.problem}" for name, state in self._sources.items())


def _name(source: str) -> str:
    return source or "the coordinator"


def _listed(sources: Sequence[str]) -> str:
    return " and ".join(_name(source) for source in sources) or "nobody"
