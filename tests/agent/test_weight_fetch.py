"""The core of fetching weights against a simulated network that loses, delays, damages and disconnects.

The oracle is the content: whatever happens, every tensor ends up equal to the coordinator's, or it says why not. Every
fault may cost some requests asked again; without a fault nothing is asked twice.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from agent.errors import WeightsUnavailable
from agent.fetch_state import Ask, Item
from agent.weight_fetch import (
    COORDINATOR,
    GIVE_UP_S,
    IN_FLIGHT,
    MAX_TRIES,
    PARTS_AHEAD,
    PATIENCE_S,
    SILENCE_S,
    FetchCore,
)
from agent.wire.bulk import MAX_CHUNK_BYTES

CHUNK = MAX_CHUNK_BYTES
MANIFEST_BYTES = 900
MOST_ASKS = 12
"""Of one chunk, with three peers that may all fail one after the other, and four lost connections of each source."""


def some_parts(random_: random.Random, count: int) -> dict[str, list[Item]]:
    """Parts with a few tensors each, sized around whole chunks."""
    sizes = [1, 500, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 5 * CHUNK + 7, 0]
    return {
        f"layer-{number:03d}": [Item(f"{number}.t{i}", random_.choice(sizes)) for i in range(random_.randint(1, 5))]
        for number in range(count)
    }


@dataclass
class Behaviour:
    """What a source does with a request."""

    latency_s: float = 0.01
    chunk_s: float = 0.01
    loses: float = 0.0
    """Share of requests that are never answered, by a source that is otherwise alive."""
    damages: bool = False
    damages_first: int = 0
    lacks: frozenset[str] = frozenset()
    other_shape: bool = False
    """Says that its tensors have another size."""
    waits: bool = False
    """Says every two seconds that it is alive."""
    later: int = 0
    """How often each part is "being made" first."""
    breaks_s: tuple[float, ...] = ()
    """When the connection breaks; it is back a second later."""
    dies_s: float = float("inf")
    connects_s: float = 0.0


class CountingCore(FetchCore):
    """Counts requests that were given up and may be asked again."""

    given_up = 0

    def _put_back(self, ask: Ask, source: str) -> None:
        self.given_up += 1
        super()._put_back(ask, source)


@dataclass
class Network:
    """Plays the caller of the core and all sources, in simulated time."""

    parts: Mapping[str, list[Item]]
    sources: Mapping[str, Behaviour]
    seed: int = 0
    have: Mapping[str, Mapping[str, list[int]]] = field(default_factory=dict)
    now: float = 0.0
    asked: Counter[tuple[str, str, int]] = field(default_factory=Counter)
    given: Counter[str] = field(default_factory=Counter)
    wasted: int = 0
    """Chunks that arrived and were of no use."""
    refused: list[str] = field(default_factory=list)
    most_open: int = 0

    def run(self, until_s: float = 1e5) -> None:
        self.random = random.Random(self.seed)
        self.events: list[tuple[float, int, tuple[object, ...]]] = []
        self.serial = 0
        self.connected = dict.fromkeys(self.sources, False)
        self.connection = dict.fromkeys(self.sources, 0)
        self.busy_s = dict.fromkeys(self.sources, 0.0)
        self.later: Counter[tuple[str, str]] = Counter()
        self.held: dict[tuple[str, str], dict[int, str]] = {}
        self.good: set[tuple[str, str]] = set()
        self.damaged: Counter[str] = Counter()
        peers = [name for name in self.sources if name != COORDINATOR]
        self.core = CountingCore(list(self.parts), peers, self.now)
        for name, source in self.sources.items():
            self.at(source.connects_s, "connect", name)
            for when in source.breaks_s:
                self.at(when, "break", name)
            if source.dies_s < float("inf"):
                self.at(source.dies_s, "break", name)
        while not self.core.is_done:
            assert self.now < until_s, "it does not come to an end"
            for ask in self.core.asks(self.now):
                self.serve(ask)
            flying = Counter(source for source in self.sources for _ in self.core._sources[source].asked)
            assert all(count <= IN_FLIGHT for count in flying.values())
            self.most_open = max(self.most_open, len(self.core._open))
            if self.core.is_done:
                break
            for name, source in self.sources.items():
                if source.waits and self.connected[name]:
                    self.core.on_wait(name, self.now)
            due_s = self.events[0][0] if self.events else self.now + 0.5
            self.now = max(self.now, min(due_s, self.now + 0.5))
            while self.events and self.events[0][0] <= self.now:
                self.happen(*heapq.heappop(self.events)[2])

    def at(self, when_s: float, *event: object) -> None:
        self.serial += 1
        heapq.heappush(self.events, (when_s, self.serial, event))

    def serve(self, ask: Ask) -> None:
        assert self.connected[ask.source]
        if ask.item:
            self.asked[ask.part, ask.item, ask.offset] += 1
            size_bytes = dict(self.parts[ask.part])[ask.item]
            assert 0 <= ask.offset < size_bytes
            assert ask.length == min(CHUNK, size_bytes - ask.offset)
            assert (ask.part, ask.item) not in self.good
        else:
            assert ask.source == COORDINATOR, "a manifest of a peer"
        source = self.sources[ask.source]
        if self.now >= source.dies_s or self.random.random() < source.loses:
            return
        self.busy_s[ask.source] = max(self.busy_s[ask.source], self.now) + source.chunk_s
        self.at(self.busy_s[ask.source] + source.latency_s, "answer", ask, self.connection[ask.source])

    def happen(self, kind: str, *details: object) -> None:
        if kind == "connect":
            [name] = details
            assert isinstance(name, str)
            if self.now < self.sources[name].dies_s:
                self.connected[name] = True
                self.core.connected(name, self.now)
        elif kind == "break":
            [name] = details
            assert isinstance(name, str)
            self.connected[name] = False
            self.connection[name] += 1
            self.core.disconnected(name)
            self.at(self.now + 1.0, "connect", name)
        else:
            ask, connection = details
            assert isinstance(ask, Ask)
            if self.connection[ask.source] == connection:
                self.answer(ask)

    def answer(self, ask: Ask) -> None:
        name, number, part, item, offset, length = ask
        source = self.sources[name]
        if part in source.lacks:
            self.core.on_missing(name, number, "has no such part", self.now)
            return
        if self.later[name, part] < source.later:
            self.later[name, part] += 1
            self.core.on_later(name, number, self.now)
            return
        size_bytes = dict(self.parts[part])[item] if item else MANIFEST_BYTES
        length = min(length, size_bytes - offset)
        size_bytes += source.other_shape
        arrival = self.core.on_chunk(name, number, length, size_bytes, self.now)
        if arrival is None:
            return
        assert (arrival.part, arrival.item, arrival.offset) == (part, item, offset)
        if not item:
            have = self.have.get(part, {})
            for tensor, chunks in have.items():
                self.held[part, tensor] = dict.fromkeys(chunks, "disk")
            for complete in self.core.open_part(part, self.parts[part], have):
                self.judge(part, complete)
            return
        self.given[name] += 1
        bad = source.damages or self.damaged[name] < source.damages_first
        self.damaged[name] += bad
        self.held.setdefault((part, item), {})[offset // CHUNK] = f"bad {name}" if bad else name
        if arrival.is_complete:
            self.judge(part, item)

    def judge(self, part: str, item: str) -> None:
        held = self.held.get((part, item), {})
        count = -(-dict(self.parts[part])[item] // CHUNK)
        assert sorted(held) == list(range(count)), "judged before it is complete"
        matches = not any(source.startswith("bad") for source in held.values())
        said = self.core.judge(part, item, matches)
        assert bool(said) != matches
        if matches:
            self.good.add((part, item))
        else:
            self.wasted += count
            self.refused.append(said)
            del self.held[part, item]

    def check_all_good(self) -> None:
        assert self.good == {(part, item.name) for part, items in self.parts.items() for item in items}
        chunks = {
            (part, item.name, number * CHUNK)
            for part, items in self.parts.items()
            for item in items
            for number in range(-(-item.size_bytes // CHUNK))
            if number not in self.have.get(part, {}).get(item.name, ())
        }
        assert set(self.asked) >= chunks
        assert sum(self.asked.values()) <= len(self.asked) + self.core.given_up + self.wasted
        assert max(self.asked.values(), default=0) <= MOST_ASKS


@pytest.mark.parametrize("seed", range(10))
def test_without_faults_nothing_is_asked_twice_and_peers_give_all(seed: int) -> None:
    parts = some_parts(random.Random(seed), 9)
    network = Network(parts, {"a": Behaviour(), "b": Behaviour(), COORDINATOR: Behaviour()})
    network.run()
    network.check_all_good()
    assert max(network.asked.values()) == 1
    assert network.given[COORDINATOR] == 0
    assert network.most_open <= PARTS_AHEAD
    assert sum(network.core.bytes_from.values()) == sum(item.size_bytes for items in parts.values() for item in items)


def random_behaviour(random_: random.Random, parts: Mapping[str, object], is_peer: bool) -> Behaviour:
    return Behaviour(
        latency_s=random_.choice([0.001, 0.1, 1.0]),
        chunk_s=random_.choice([0.001, 0.01, 0.5, 4.0]),
        loses=random_.choice([0.0, 0.0, 0.05]) if is_peer else random_.choice([0.0, 0.02]),
        damages=is_peer and random_.random() < 0.2,
        damages_first=random_.choice([0, 0, 1]) if is_peer else 0,
        lacks=frozenset(part for part in parts if is_peer and random_.random() < 0.3),
        later=0 if is_peer else random_.choice([0, 3]),
        breaks_s=tuple(random_.uniform(0, 20) for _ in range(random_.randint(0, 4))),
        dies_s=random_.choice([0.5, 5.0, 1e9]) if is_peer else 1e9,
        connects_s=random_.choice([0.0, 0.5, 3.0, 1e9 if is_peer else 0.0]),
    )


@pytest.mark.parametrize("seed", range(150))
def test_random_faults(seed: int) -> None:
    random_ = random.Random(seed)
    parts = some_parts(random_, random_.randint(1, 8))
    sources = {name: random_behaviour(random_, parts, True) for name in "abc"[: random_.randint(0, 3)]}
    network = Network(parts, {**sources, COORDINATOR: random_behaviour(random_, parts, False)}, seed)
    network.run()
    network.check_all_good()
    liars = {name for name, source in sources.items() if source.damages}
    assert all(any(liar in said for liar in sources) for said in network.refused)
    assert all(network.core._sources[name].trusted for name in sources if not sources[name].damages_first) or liars


@pytest.mark.parametrize("seed", range(20))
def test_what_is_there_already_is_not_asked_again(seed: int) -> None:
    random_ = random.Random(seed)
    parts = some_parts(random_, 5)
    have = {
        part: {
            item.name: [number for number in range(-(-item.size_bytes // CHUNK)) if random_.random() < 0.6]
            for item in items
        }
        for part, items in parts.items()
    }
    network = Network(parts, {"a": Behaviour(), COORDINATOR: Behaviour()}, have=have)
    network.run()
    network.check_all_good()
    for part, item, offset in network.asked:
        assert offset // CHUNK not in have[part][item]


def test_a_peer_that_gives_wrong_bytes_is_named_once_and_not_asked_again() -> None:
    parts = {"head": [Item("w", 3 * CHUNK), Item("v", 2 * CHUNK), Item("u", CHUNK)]}
    network = Network(parts, {"liar": Behaviour(damages=True), COORDINATOR: Behaviour()})
    network.run()
    network.check_all_good()
    assert network.refused == ["head: w from liar does not match its digest"]
    assert network.given[COORDINATOR] == 6


def test_where_several_gave_chunks_none_is_condemned_and_the_coordinator_gives_the_tensor() -> None:
    parts = {"head": [Item("w", 20 * CHUNK)]}
    # Dies in the middle of the tensor; the second one, which damages its first chunk, goes on with it.
    dying = Behaviour(dies_s=0.5, chunk_s=0.1)
    network = Network(parts, {"a": dying, "b": Behaviour(damages_first=1), COORDINATOR: Behaviour()})
    network.run()
    network.check_all_good()
    assert network.refused == ["head: w from a and b does not match its digest"]
    assert network.given[COORDINATOR] == 20
    assert network.core._sources["b"].trusted


def test_bytes_of_before_that_do_not_match_condemn_nobody() -> None:
    core = FetchCore(["head"], [], 0.0)
    core.connected(COORDINATOR, 0.0)
    [ask] = core.asks(0.0)
    core.on_chunk(COORDINATOR, ask.number, 10, 10, 0.0)
    assert core.open_part("head", [Item("w", 2 * CHUNK)], {"w": [0, 1]}) == ["w"]
    assert core.judge("head", "w", False) == "head: w from what was fetched before does not match its digest"
    assert [ask.offset for ask in core.asks(0.0)] == [0, CHUNK]


def test_a_coordinator_whose_own_bytes_never_match_is_an_error() -> None:
    network = Network({"head": [Item("w", CHUNK)]}, {COORDINATOR: Behaviour(damages=True)})
    with pytest.raises(WeightsUnavailable, match="head: w from the coordinator does not match"):
        network.run()
    assert network.asked["head", "w", 0] == MAX_TRIES


def test_a_coordinator_that_lacks_the_model_is_an_error() -> None:
    network = Network({"head": [Item("w", 1)]}, {COORDINATOR: Behaviour(lacks=frozenset(["head"]))})
    with pytest.raises(WeightsUnavailable, match="does not give head: has no such part"):
        network.run()


def test_nobody_there_is_an_error_that_names_everybody() -> None:
    network = Network({"head": [Item("w", 1)]}, {"a": Behaviour(connects_s=1e9), COORDINATOR: Behaviour(dies_s=0.0)})
    with pytest.raises(WeightsUnavailable, match=r"a does not answer; the coordinator"):
        network.run()
    assert network.now == pytest.approx(GIVE_UP_S, abs=5)


def test_a_slow_peer_has_the_coordinator_beside_it() -> None:
    parts = {"head": [Item(f"t{number}", 4 * CHUNK) for number in range(20)]}
    network = Network(parts, {"slow": Behaviour(chunk_s=10.0), COORDINATOR: Behaviour(chunk_s=0.1)})
    network.run()
    network.check_all_good()
    assert network.given["slow"] < 10
    assert network.now < PATIENCE_S + 5


def test_a_tensor_that_takes_too_long_is_given_by_who_has_nothing_to_do() -> None:
    parts = {"head": [Item("w", 4 * CHUNK)]}
    network = Network(parts, {"slow": Behaviour(chunk_s=500.0, waits=True), COORDINATOR: Behaviour()})
    network.run()
    network.check_all_good()
    assert PATIENCE_S < network.now < PATIENCE_S + 5
    assert (network.given["slow"], network.given[COORDINATOR]) == (0, 4)
    assert set(network.asked.values()) == {2}


def test_a_peer_alone_may_take_as_long_as_it_likes_while_it_says_so() -> None:
    parts = {"head": [Item("w", 2 * CHUNK)]}
    network = Network(parts, {COORDINATOR: Behaviour(chunk_s=3 * GIVE_UP_S, waits=True)})
    network.run()
    network.check_all_good()
    assert set(network.asked.values()) == {1}


def test_a_peer_with_tensors_of_another_shape_gives_nothing() -> None:
    parts = {"head": [Item("w", 3 * CHUNK), Item("v", 10)]}
    network = Network(parts, {"other": Behaviour(other_shape=True), COORDINATOR: Behaviour()})
    network.run()
    network.check_all_good()
    assert (network.given["other"], network.given[COORDINATOR]) == (0, 4)
    assert network.wasted == 0


def test_a_silent_peer_costs_its_silence_only() -> None:
    parts = {"head": [Item(f"t{number}", CHUNK) for number in range(50)]}
    network = Network(parts, {"a": Behaviour(loses=1.0), COORDINATOR: Behaviour()})
    network.run()
    network.check_all_good()
    assert network.now < SILENCE_S + 5


@pytest.mark.parametrize("parts_wanted", [1, 6])
def test_a_peer_that_puts_everything_off_holds_up_nothing(parts_wanted: int) -> None:
    parts = some_parts(random.Random(1), parts_wanted)
    network = Network(parts, {"tease": Behaviour(later=1 << 30), COORDINATOR: Behaviour()})
    network.run()
    network.check_all_good()
    assert network.now < 2


def test_signs_of_life_of_a_peer_do_not_stand_for_the_coordinators() -> None:
    alive = Behaviour(waits=True, lacks=frozenset(["head"]))
    network = Network({"head": [Item("w", 1)]}, {"a": alive, COORDINATOR: Behaviour(dies_s=0.0)})
    with pytest.raises(WeightsUnavailable, match="no source of weights has answered"):
        network.run(until_s=10 * GIVE_UP_S)
