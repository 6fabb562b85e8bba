"""What is read of TCP_INFO, against a real connection and against bytes made by hand."""

from __future__ import annotations

import os
import random
import socket
import struct
import sys

import pytest

from agent.wire.tcp_state import parse_tcp_info, read_tcp_state


def tcp_info(
    *,
    state: int = 1,
    limited: int = 0,
    rtt_us: int = 0,
    deviation_us: int = 0,
    resent: int = 0,
    sent: int = 0,
    rate: int = 0,
) -> bytes:
    """`struct tcp_info` as linux/tcp.h has it, field by field."""
    head = struct.pack("=8B", state, 0, 0, 0, 0, 0, 0, limited)
    words = [0] * 23
    words[15], words[16] = rtt_us, deviation_us  # after rto ... pmtu, rcv_ssthresh
    rest = struct.pack("=23I", *words) + struct.pack("=I", resent) + struct.pack("=4Q", 0, 0, 0, 0)
    return head + rest + struct.pack("=6I", sent, 0, 0, 0, 0, 0) + struct.pack("=Q", rate)


def test_fields_are_where_the_kernel_puts_them() -> None:
    state = parse_tcp_info(tcp_info(limited=1, rtt_us=12_500, deviation_us=750, resent=3, sent=60, rate=1_250_000))
    assert state is not None
    assert (state.rtt_ms, state.rtt_deviation_ms) == (12.5, 0.75)
    assert state.delivery_bytes_per_s == 1_250_000
    assert state.is_sender_limited
    assert state.resent == pytest.approx(0.05)


def test_what_is_not_measured_yet_is_none_and_not_0() -> None:
    state = parse_tcp_info(tcp_info())
    assert state is not None
    assert (state.rtt_ms, state.rtt_deviation_ms, state.delivery_bytes_per_s, state.resent) == (None,) * 4


def test_an_older_kernels_shorter_answer_leaves_the_rest_unknown() -> None:
    whole = tcp_info(rtt_us=1000, resent=1, sent=10, rate=5)
    state = parse_tcp_info(whole[:104])
    assert state is not None
    assert (state.rtt_ms, state.segments_resent) == (1.0, 1)
    assert (state.segments_sent, state.resent, state.delivery_bytes_per_s) == (None, None, None)


@pytest.mark.parametrize("length", [0, 1, 7])
def test_too_short_is_no_state(length: int) -> None:
    assert parse_tcp_info(tcp_info()[:length]) is None


def test_a_connection_that_is_not_established_has_none() -> None:
    assert parse_tcp_info(tcp_info(state=8, rtt_us=100)) is None


def test_no_bytes_make_it_raise() -> None:
    generator = random.Random(5)
    for _ in range(200):
        parse_tcp_info(generator.randbytes(generator.randrange(256)))


@pytest.mark.skipif(sys.platform != "linux", reason="TCP_INFO is Linux's")
def test_a_real_connection_has_a_round_trip_and_stays_its_owners() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        accepted, _ = server.accept()
        with client, accepted:
            client.sendall(bytes(100_000))
            left = 100_000
            while left:
                left -= len(accepted.recv(left))
            accepted.sendall(b"done")
            assert client.recv(4) == b"done"
            state = read_tcp_state(client.fileno())
            assert state is not None
            assert state.rtt_ms is not None
            assert 0.0 < state.rtt_ms < 1000.0
            assert state.segments_sent
            client.sendall(b"still open")
            assert accepted.recv(10) == b"still open"


def test_what_is_no_connection_has_no_state() -> None:
    read, write = os.pipe()
    try:
        assert read_tcp_state(read) is None
    finally:
        os.close(read)
        os.close(write)
    assert read_tcp_state(write) is None
    assert read_tcp_state(-1) is None
