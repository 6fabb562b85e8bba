"""Texts of `iw` and of the kernel, whole, odd and broken; a program that hangs, fails or writes for ever."""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from agent.device.sensors import radio
from agent.device.sensors.radio import (
    FIELDS,
    INTERVAL_S,
    LONGEST_RUN_S,
    RadioSensor,
    parse_proc_wireless,
    parse_station_dump,
    wireless_interfaces,
)
from agent.wire.link_report import RadioObservation

STATION = """Station {address} (on wlan0)
\tinactive time:\t304 ms
\trx bytes:\t18816
\trx packets:\t{rx}
\ttx bytes:\t5386
\ttx packets:\t{tx}
\ttx retries:\t{retries}
\ttx failed:\t{failed}
\tbeacon loss:\t2
\tbeacon rx:\t1234
\trx drop misc:\t12
\tsignal:  \t-57 [-60, -61] dBm
\tsignal avg:\t-58 dBm
\ttx bitrate:\t144.4 MBit/s MCS 15 short GI
\trx bitrate:\t1.0 MBit/s
\texpected throughput:\t46.875Mbps
\tauthorized:\tyes
"""
ONE = STATION.format(address="02:00:00:00:01:00", rx=75, tx=21, retries=4, failed=1)
OTHER = STATION.format(address="02:00:00:00:02:00", rx=5, tx=9, retries=1, failed=0)
WIRELESS = """Inter-| sta-|   Quality        |   Discarded packets               | Missed | WE
 face | tus | link level noise |  nwid  crypt   frag  retry   misc | beacon | 22
 wlan0: 0000   54.  -56.  -256        0      0      0     10      5        3
wlp2s0: 0000   40.   70.     0        1      2      3      4      5        6
"""


def reasons_match(seen: RadioObservation) -> bool:
    return {name for name in FIELDS if getattr(seen, name) is None} == set(seen.missing) and all(seen.missing.values())


def test_a_station_as_iw_prints_it() -> None:
    assert parse_station_dump(ONE, "wlan0") == RadioObservation(
        "wlan0",
        "iw",
        signal_dbm=-57.0,
        tx_bitrate_bits_per_s=144.4e6,
        tx_packets=21,
        tx_retries=4,
        tx_failed=1,
        rx_packets=75,
        beacon_losses=2,
    )


def test_an_access_points_stations_are_counted_together() -> None:
    seen = parse_station_dump(ONE + OTHER, "wlan0")
    assert (seen.tx_packets, seen.tx_retries, seen.tx_failed, seen.rx_packets) == (30, 5, 1, 80)
    assert seen.signal_dbm is None
    assert reasons_match(seen)


def test_another_interfaces_stations_are_not_ours() -> None:
    text = OTHER.replace("wlan0", "wlan1") + ONE + OTHER.replace("wlan0", "wlan1")
    assert parse_station_dump(text, "wlan0") == parse_station_dump(ONE, "wlan0")


def test_without_a_network_everything_is_unknown() -> None:
    seen = parse_station_dump("", "wlan0")
    assert reasons_match(seen)
    assert set(seen.missing) == set(FIELDS)


@pytest.mark.parametrize("line", [line for line in ONE.splitlines() if line.startswith("\tt") or "signal" in line])
def test_what_a_driver_does_not_tell_is_none_and_not_0(line: str) -> None:
    seen = parse_station_dump(ONE.replace(line + "\n", ""), "wlan0")
    assert reasons_match(seen)
    odd = parse_station_dump(ONE.replace(line, line.split(":", maxsplit=1)[0] + ":\t(unknown)"), "wlan0")
    assert odd == seen


def test_the_kernels_own_table() -> None:
    seen = parse_proc_wireless(WIRELESS)
    assert set(seen) == {"wlan0", "wlp2s0"}
    assert (seen["wlan0"].signal_dbm, seen["wlan0"].tx_failed, seen["wlan0"].beacon_losses) == (-56.0, 10, 3)
    assert (seen["wlp2s0"].signal_dbm, seen["wlp2s0"].tx_failed, seen["wlp2s0"].beacon_losses) == (None, 4, 6)
    assert all(reasons_match(each) for each in seen.values())


def test_any_text_is_read_without_an_error() -> None:
    generator = random.Random(3)
    for _ in range(300):
        text = list(ONE + OTHER + WIRELESS)
        for _ in range(generator.randrange(1, 30)):
            text[generator.randrange(len(text))] = generator.choice("\n\t: -9aZ\0é")
        assert reasons_match(parse_station_dump("".join(text), "wlan0"))
        assert all(reasons_match(each) for each in parse_proc_wireless("".join(text)).values())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine with one wireless interface and a wired one."""
    (tmp_path / "sys/class/net/wlan0/phy80211").mkdir(parents=True)
    (tmp_path / "sys/class/net/eth0").mkdir()
    (tmp_path / "proc/net").mkdir(parents=True)
    (tmp_path / "proc/net/wireless").write_text(WIRELESS)
    return tmp_path


@pytest.fixture
def iw(tmp_path: Path) -> Callable[[str], str]:
    """Makes a program of this shell text that stands for iw."""

    def make(text: str) -> str:
        path = tmp_path / "iw"
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return str(path)

    return make


def ended(sensor: RadioSensor) -> None:
    """Until every program the sensor has started is over."""
    for run in sensor._running.values():
        run.process.wait(20)


def test_only_wireless_interfaces_are_found(root: Path) -> None:
    assert wireless_interfaces(root) == ("wlan0",)


def test_a_machine_without_a_radio_has_none(tmp_path: Path) -> None:
    with closing(RadioSensor(tmp_path, "/nowhere/iw")) as sensor:
        assert sensor.sample(0.0) == ()


def test_a_later_call_has_what_the_program_wrote(root: Path, iw: Callable[[str], str]) -> None:
    (root / "said").write_text(ONE)
    with closing(RadioSensor(root, iw(f'[ "$*" = "dev wlan0 station dump" ] && cat {root}/said'))) as sensor:
        assert sensor.sample(0.0) == ()
        ended(sensor)
        assert sensor.sample(0.5) == (parse_station_dump(ONE, "wlan0"),)
        (root / "said").write_text(OTHER)
        assert sensor.sample(INTERVAL_S) == (parse_station_dump(ONE, "wlan0"),)
        ended(sensor)
        assert sensor.sample(INTERVAL_S + 0.1) == (parse_station_dump(OTHER, "wlan0"),)


@pytest.mark.parametrize(("text", "reason"), [("exit 3", "status 3"), ("kill -9 $$", "status -9")])
def test_a_program_that_fails_is_a_reason(root: Path, iw: Callable[[str], str], text: str, reason: str) -> None:
    with closing(RadioSensor(root, iw(text))) as sensor:
        sensor.sample(0.0)
        ended(sensor)
        (seen,) = sensor.sample(0.1)
        assert all(reason in why for why in seen.missing.values())
        assert reasons_match(seen)


def test_a_program_that_hangs_is_ended_and_asked_again(root: Path, iw: Callable[[str], str]) -> None:
    with closing(RadioSensor(root, iw("exec sleep 1000"))) as sensor:
        sensor.sample(0.0)
        (first,) = [run.process for run in sensor._running.values()]
        assert sensor.sample(LONGEST_RUN_S / 2) == ()
        (seen,) = sensor.sample(LONGEST_RUN_S + 0.1)
        assert "longer" in seen.missing["signal_dbm"]
        first.wait(20)
        sensor.sample(LONGEST_RUN_S + 0.2 + INTERVAL_S)
        (second,) = [run.process for run in sensor._running.values()]
    assert second is not first
    assert second.returncode is not None


def test_a_program_that_cannot_be_ended_holds_nobody_up(
    root: Path, iw: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It hangs in its driver, say, and even SIGKILL waits for that. No second one is started beside it."""
    with closing(RadioSensor(root, iw("exec sleep 1000"))) as sensor:
        with monkeypatch.context() as patched:
            patched.setattr(subprocess.Popen, "kill", lambda _: None)
            sensor.sample(0.0)
            (hung,) = sensor._running.values()
            for number in range(1, 5):
                (seen,) = sensor.sample(number * (LONGEST_RUN_S + INTERVAL_S))
                assert "longer" in seen.missing["signal_dbm"]
        assert list(sensor._running.values()) == [hung]
    assert hung.process.returncode is not None


def test_a_program_that_never_stops_writing_is_ended(
    root: Path, iw: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(radio, "MAX_OUTPUT_BYTES", 1000)
    with closing(RadioSensor(root, iw("exec yes"))) as sensor:
        sensor.sample(0.0)
        deadline_s = time.monotonic() + 20
        while not (seen := sensor.sample(0.1)):
            assert time.monotonic() < deadline_s
        assert "more than 1000 bytes" in seen[0].missing["tx_retries"]


def test_a_program_that_cannot_be_started_is_a_reason(root: Path) -> None:
    with closing(RadioSensor(root, str(root / "absent"))) as sensor:
        (seen,) = sensor.sample(0.0)
        assert "cannot be started" in seen.missing["signal_dbm"]


def test_without_iw_the_kernels_table_is_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    with closing(RadioSensor(root)) as sensor:
        assert sensor.sample(0.0) == (parse_proc_wireless(WIRELESS)["wlan0"],)
        (root / "proc/net/wireless").unlink()
        (seen,) = sensor.sample(INTERVAL_S)
        assert "there is no iw" in seen.missing["signal_dbm"]


def test_closing_twice_ends_what_runs(root: Path, iw: Callable[[str], str]) -> None:
    sensor = RadioSensor(root, iw("exec sleep 1000"))
    sensor.sample(0.0)
    (process,) = [run.process for run in sensor._running.values()]
    sensor.close()
    sensor.close()
    assert isinstance(process, subprocess.Popen)
    assert process.returncode is not None
