"""Unknown values are None with a reason, whatever part of a link is known."""

from __future__ import annotations

from agent.wire import messages
from agent.wire.link_report import LinkObservation, RadioObservation, emulated_observation, observation, pinged
from agent.wire.tcp_state import TcpState

WHOLE = TcpState(12.5, 0.5, 1e6, False, 100, 5)


def test_a_connection_as_the_kernel_measured_it() -> None:
    assert observation("b", WHOLE) == LinkObservation("b", 12.5, 0.5, 1e6, resent=0.05)


def test_a_sender_without_more_to_send_gives_a_lower_bound() -> None:
    assert observation("b", TcpState(1.0, 0.5, 1e3, True, 10, 0)).is_lower_bound
    assert not observation("b", TcpState(1.0, 0.5, None, True, 10, 0)).is_lower_bound


def test_every_unknown_value_has_a_reason() -> None:
    for state in (None, TcpState(None, None, None, False, None, None), TcpState(1.0, 1.0, None, True, 0, 0), WHOLE):
        link = observation("b", state)
        unknown = {name for name in ("rtt_ms", "goodput_bytes_per_s", "resent") if getattr(link, name) is None}
        assert unknown == set(link.missing)
        assert all(link.missing.values())


def test_an_emulated_link_says_so_and_takes_its_round_trip_from_pings() -> None:
    link = emulated_observation("b", 5e5)
    assert (link.emulated, link.goodput_bytes_per_s, link.rtt_ms) == (True, 5e5, None)
    after = pinged(link, 0.04, 0.001)
    assert (after.rtt_ms, after.rtt_deviation_ms) == (40.0, 1.0)
    assert "rtt_ms" not in after.missing
    assert "resent" in after.missing


def test_an_emulated_link_without_a_rate_claims_none() -> None:
    link = emulated_observation("b", 0.0)
    assert link.goodput_bytes_per_s is None
    assert "goodput_bytes_per_s" in link.missing


def test_pings_do_not_replace_what_the_kernel_measured() -> None:
    link = observation("b", WHOLE)
    assert pinged(link, 9.0, 9.0) is link


def test_a_heartbeat_carries_links_and_radios() -> None:
    radio = RadioObservation("wlan0", "iw", -60.0, tx_retries=4, missing={"rx_packets": "not told"})
    beat = messages.Heartbeat(1, telemetry=messages.Telemetry(links=(observation("b", None),)), radios=(radio,))
    assert messages.decode(messages.encode(beat), messages.FromAgent) == beat
