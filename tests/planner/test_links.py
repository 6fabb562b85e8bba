"""The links file: what it says, and what it may not say."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.errors import BadLinks
from planner.links import FRAME_BYTES, lan_links, nominal_link, parse_links
from planner.profile import LinkProfile

DEVICES = ("nano", "desk", "cloud")
DEFAULT = "[default]\nbandwidth_mbit_per_s = 100\nlatency_ms = 1.0\n"


def by_pair(links: tuple[LinkProfile, ...]) -> dict[tuple[str, str], LinkProfile]:
    return {(link.source, link.destination): link for link in links}


def test_a_default_joins_everybody() -> None:
    links = parse_links(DEFAULT, DEVICES)
    assert len(links) == 6
    for link in links:
        assert link.estimated
        assert link.bandwidth_bytes_per_s == 12.5e6
        # A frame's own bytes take time that no payload accounts for.
        assert link.latency_ms == pytest.approx(1.0 + 1e3 * FRAME_BYTES / 12.5e6)


def test_named_links_go_both_ways_unless_said_otherwise() -> None:
    text = (
        DEFAULT
        + """
        [[links]]
        from = "nano"
        to = "cloud"
        bandwidth_mbit_per_s = 1
        [[links]]
        from = "desk"
        to = "cloud"
        latency_ms = 9
        both_ways = false
    """
    )
    links = by_pair(parse_links(text, DEVICES))
    for pair in (("nano", "cloud"), ("cloud", "nano")):
        assert links[pair].bandwidth_bytes_per_s == 125e3
        assert links[pair].latency_ms == pytest.approx(1.0 + 1e3 * FRAME_BYTES / 125e3)
    assert links["desk", "cloud"].latency_ms == pytest.approx(9.008)
    assert links["cloud", "desk"].latency_ms == pytest.approx(1.008)


def test_without_a_default_pairs_that_are_not_named_have_no_link() -> None:
    text = '[[links]]\nfrom = "nano"\nto = "desk"\nbandwidth_mbit_per_s = 1\nlatency_ms = 0\n'
    assert set(by_pair(parse_links(text, DEVICES))) == {("nano", "desk"), ("desk", "nano")}
    assert parse_links("", DEVICES) == ()


def test_known_links_stay_where_the_file_says_nothing() -> None:
    known = LinkProfile(source="desk", destination="cloud", latency_ms=4.0, bandwidth_bytes_per_s=7.0, rtt_p50_ms=9.0)
    text = '[[links]]\nfrom = "nano"\nto = "desk"\nbandwidth_mbit_per_s = 1\nlatency_ms = 0\n'
    links = by_pair(parse_links(text, DEVICES, [known]))
    assert len(links) == 3
    assert links["desk", "cloud"] == known
    assert by_pair(parse_links(DEFAULT, DEVICES, [known]))["desk", "cloud"].latency_ms == pytest.approx(1.008)


def test_json_says_the_same() -> None:
    table = {
        "default": {"bandwidth_mbit_per_s": 100, "latency_ms": 1.0},
        "links": [{"from": "nano", "to": "desk", "latency_ms": 5}],
    }
    toml = DEFAULT + '[[links]]\nfrom = "nano"\nto = "desk"\nlatency_ms = 5\n'
    assert parse_links(json.dumps(table), DEVICES) == parse_links(toml, DEVICES)


def entry(**fields: object) -> str:
    values = {"from": "nano", "to": "desk", "bandwidth_mbit_per_s": 1, "latency_ms": 0, **fields}
    return json.dumps({"links": [{key: value for key, value in values.items() if value is not None}]})


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[", "neither TOML nor JSON"),
        ("{", "neither TOML nor JSON"),
        ("bandwidth = 1", "top level: unknown key 'bandwidth'"),
        ('{"default": 5}', "default: must be a table"),
        ('{"default": {"bandwidth_mbit_per_s": 5}}', "default.latency_ms: is missing"),
        ('{"links": {}}', "links: must be a list"),
        ('{"links": [3]}', "links[0]: must be a table"),
        (entry(**{"from": "nanno"}), "links[0].from: unknown device 'nanno'; did you mean nano?"),
        (entry(to="disk"), "links[0].to: unknown device 'disk'; did you mean desk?"),
        (entry(to=None), "links[0].to: is missing"),
        (entry(to=7), "links[0].to: must be a device, it is 7"),
        (entry(to="nano"), "links[0]: from nano to itself"),
        (entry(bandwidth_mbit_per_s=None), "links[0].bandwidth_mbit_per_s: is missing"),
        (entry(bandwidth_mbit_per_s=0), "links[0].bandwidth_mbit_per_s: must be above 0"),
        (entry(bandwidth_mbit_per_s=-3), "links[0].bandwidth_mbit_per_s: must be a number from 0 to 1e+09, it is -3"),
        (entry(latency_ms=-0.5), "links[0].latency_ms: must be a number from 0 to 1e+09, it is -0.5"),
        (entry(latency_ms="2"), "links[0].latency_ms: must be a number from 0 to 1e+09, it is '2'"),
        (entry(bandwidth_mbit_per_s=1e300), "links[0].bandwidth_mbit_per_s"),
        (entry(latency_ms=True), "links[0].latency_ms"),
        (entry(latency_mss=2), "links[0]: unknown key 'latency_mss'; did you mean latency_ms?"),
        (entry(both_ways="no"), "links[0].both_ways: must be true or false"),
        ("[default]\nbandwidth_mbit_per_s = inf\nlatency_ms = 0", "default.bandwidth_mbit_per_s"),
        ("[default]\nbandwidth_mbit_per_s = 1\nlatency_ms = nan", "default.latency_ms"),
        ("[default]\nbandwidth_mbit_per_s = 1e-300\nlatency_ms = 0", "default.bandwidth_mbit_per_s"),
    ],
)
def test_a_wrong_entry_is_named(text: str, named: str) -> None:
    with pytest.raises(BadLinks) as caught:
        parse_links(text, DEVICES)
    assert named in str(caught.value)


def test_a_pair_that_is_named_twice_is_refused() -> None:
    both = json.loads(entry())["links"] + json.loads(entry(**{"from": "desk", "to": "nano"}))["links"]
    with pytest.raises(BadLinks, match=r"links\[1\]: desk to nano is there twice"):
        parse_links(json.dumps({"links": both}), DEVICES)


@given(st.text(max_size=100))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        parse_links(text, DEVICES)
    except BadLinks:
        return


def test_damaged_files_are_read_or_refused() -> None:
    rng = random.Random(7)
    whole = DEFAULT + '[[links]]\nfrom = "nano"\nto = "desk"\nlatency_ms = 5\n'
    for _ in range(2000):
        text = list(whole)
        for _ in range(rng.randint(1, 4)):
            text[rng.randrange(len(text))] = chr(rng.randint(1, 255))
        try:
            parse_links("".join(text), DEVICES)
        except BadLinks:
            continue


def test_a_lan_joins_everybody_alike() -> None:
    links = lan_links(DEVICES)
    assert len(links) == 6
    assert len({(link.latency_ms, link.bandwidth_bytes_per_s) for link in links}) == 1
    assert links[0] == nominal_link("nano", "desk", 940.0, 0.2)
