"""Key files, the allow list and its answers to ZAP. Handshakes over real sockets: test_data_plane."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st
from zmq.utils import z85

from agent.errors import ConfigError
from agent.wire.security import (
    ZAP_ENDPOINT,
    AllowList,
    Gatekeeper,
    KeyPair,
    check_public_key,
    create_key_file,
    fingerprint,
    generate_keys,
    load_key_file,
)


def test_a_key_file_gives_the_pair_back(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "device.key"
    public = create_key_file(path)
    keys = load_key_file(path)
    assert keys.public == public
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text() == keys.secret + "\n"


def test_a_wide_open_umask_does_not_open_the_file(tmp_path: Path) -> None:
    former = os.umask(0)
    try:
        create_key_file(tmp_path / "device.key")
    finally:
        os.umask(former)
    assert stat.S_IMODE((tmp_path / "device.key").stat().st_mode) == 0o600


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "device.key"
    public = create_key_file(path)
    with pytest.raises(ConfigError, match=r"device\.key exists"):
        create_key_file(path)
    assert load_key_file(path).public == public
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError):
        create_key_file(tmp_path / "link")
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666])
def test_a_key_that_others_may_read_is_refused_with_the_remedy(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "device.key"
    create_key_file(path)
    path.chmod(mode)
    with pytest.raises(ConfigError, match=f"{mode:04o}.*chmod 600 {path}"):
        load_key_file(path)


def test_an_absent_key_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="edge-agent init"):
        load_key_file(tmp_path / "device.key")
    with pytest.raises(ConfigError, match="directory"):
        load_key_file(tmp_path)


@given(st.binary(max_size=60))
def test_any_content_is_a_key_or_refused_without_quoting_it(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("keys") / "device.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError) as caught:
        load_key_file(path)
    assert str(caught.value) == f"{path} does not hold a key of 40 characters of Z85"


@given(st.text(max_size=45))
def test_any_text_that_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        check_public_key(text)


@given(st.binary(min_size=32, max_size=32))
def test_any_32_bytes_are_a_key(raw: bytes) -> None:
    key = z85.encode(raw).decode()
    assert check_public_key(key) == key


def test_five_characters_above_32_bits_are_refused() -> None:
    with pytest.raises(ConfigError):
        check_public_key("#" * 40)


def test_a_secret_is_not_printed() -> None:
    keys = generate_keys()
    assert keys.secret not in repr(keys)


def test_fingerprints_are_short_and_differ() -> None:
    prints = {fingerprint(generate_keys().public) for _ in range(20)}
    assert len(prints) == 20
    assert all(len(text) == 19 and text.count("-") == 3 for text in prints)


def test_the_list_changes_and_refuses_what_is_no_key() -> None:
    first, second = generate_keys().public, generate_keys().public
    allow = AllowList({first: "jetson"})
    assert (allow.device(first), allow.device(second)) == ("jetson", None)
    allow.allow(second, "box")
    assert len(allow) == 2
    allow.revoke(first)
    allow.revoke(first)
    assert first not in allow
    assert second in allow
    for change in (lambda: allow.replace({"short": "x"}), lambda: allow.allow("short", "x")):
        with pytest.raises(ConfigError):
            change()
    assert allow.device(second) == "box"
    allow.replace({first: "jetson"})
    assert (first in allow, second in allow) == (True, False)


def test_changes_from_many_threads_are_all_kept() -> None:
    keys = [generate_keys().public for _ in range(64)]
    allow = AllowList()
    start = threading.Barrier(4)

    def add(part: int) -> None:
        start.wait()
        for key in keys[part::4]:
            allow.allow(key, "device")

    threads = [threading.Thread(target=add, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(allow) == len(keys)


@pytest.fixture
def asked() -> Iterator[tuple[zmq.Socket[bytes], Gatekeeper, KeyPair]]:
    """A ZAP client as libzmq is one, the gatekeeper it asks, and the pair on its list."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    listed = generate_keys()
    server = context.socket(zmq.ROUTER)
    gatekeeper = Gatekeeper(context, server, AllowList({listed.public: "jetson"}))
    client = context.socket(zmq.REQ)
    client.connect(ZAP_ENDPOINT)
    yield client, gatekeeper, listed
    client.close()
    server.disable_monitor()
    server.close()
    gatekeeper.close()
    gatekeeper.close()
    context.term()


def test_zap_answers(asked: tuple[zmq.Socket[bytes], Gatekeeper, KeyPair]) -> None:
    client, gatekeeper, listed = asked
    key = z85.decode(listed.public.encode())
    good = [b"1.0", b"7", b"edge", b"127.0.0.1", b"", b"CURVE", key]
    client.send_multipart(good)
    assert client.recv_multipart() == [b"1.0", b"7", b"200", b"OK", listed.public.encode(), b""]
    wrong = [
        [b"2.0", *good[1:]],
        [*good[:2], b"other", *good[3:]],
        [*good[:2], b"", *good[3:]],
        [*good[:5], b"NULL"],
        [*good[:5], b"PLAIN", key],
        [*good[:6], bytes(32)],
        [*good[:6], key[:31]],
        [*good, b"more"],
        [b"1.0"],
    ]
    for request in wrong:
        client.send_multipart(request)
        reply = client.recv_multipart()
        assert (reply[2], reply[4]) == (b"400", b"")
    assert gatekeeper.refused == len(wrong)


def test_no_public_key_looks_like_an_option() -> None:
    assert not any(generate_keys().public.startswith("-") for _ in range(1000))
