"""Keys, the list of devices that may connect, and ZeroMQ's authentication (ZAP, RFC 27) over that list.

A device is its CURVE key: routing ids and addresses are claims. Only the secret is stored; the public key is derived.
No key and no secret is ever logged.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import zmq
from zmq.utils import z85

from agent.errors import ConfigError

KEY_LENGTH = 40
"""Z85 characters of 32 bytes."""

ZAP_ENDPOINT = "inproc://zeromq.zap.01"
ZAP_DOMAIN = "edge"
"""libzmq asks the ZAP handler only for sockets with a domain, and pyzmq's handler refuses a domain it was not given."""
ZAP_VERSION = b"1.0"


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A CURVE key pair in Z85."""

    public: str
    secret: str = field(repr=False)


def generate_keys() -> KeyPair:
    """A fresh X25519 key pair from the operating system's randomness.

    One key in 85 begins with a dash in Z85, and no command line could take it for anything but an option: not used.
    """
    public, secret = zmq.curve_keypair()
    while public.startswith(b"-"):
        public, secret = zmq.curve_keypair()
    return KeyPair(public.decode(), secret.decode())


def check_public_key(text: str) -> str:
    """The key itself when it is Z85 of 32 bytes. Raises ConfigError."""
    if not _is_key(text):
        raise ConfigError(f"public key {text!r:.60} is not {KEY_LENGTH} characters of Z85 (ZeroMQ RFC 32)")
    return text


def create_key_file(path: Path) -> str:
    """Make a key, write its secret to a new file with mode 0600 and return the public key.

    Raises ConfigError when the file exists: a device that changes its key is another device to the cluster.
    """
    keys = generate_keys()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        raise ConfigError(f"{path} exists: remove it first if this device is to get a new key") from None
    except OSError as problem:
        raise ConfigError(f"cannot create {path}: {problem.strerror}") from problem
    with open(descriptor, "w", encoding="ascii") as file:
        file.write(keys.secret + "\n")
        file.flush()
        os.fsync(file.fileno())
    return keys.public


def load_key_file(path: Path) -> KeyPair:
    """The key pair of a file `create_key_file` wrote. Raises ConfigError: absent, readable by others, malformed."""
    try:
        with open(path, "rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            content = file.read(4096)
    except FileNotFoundError:
        raise ConfigError(f"no key at {path}: make one with: edge-agent init") from None
    except OSError as problem:
        raise ConfigError(f"cannot read {path}: {problem.strerror}") from problem
    if mode & 0o077:
        raise ConfigError(f"{path} has mode {mode:04o}: others may read this device's key; fix with: chmod 600 {path}")
    secret = content.decode("latin-1").strip()
    if not _is_key(secret):
        # The content is not quoted: it may be most of a secret.
        raise ConfigError(f"{path} does not hold a key of {KEY_LENGTH} characters of Z85")
    return KeyPair(zmq.curve_public(secret.encode()).decode(), secret)


def fingerprint(public: str) -> str:
    """SHA-256 of the key, its first 64 bits in four groups: short enough to read out to somebody."""
    digest = hashlib.sha256(z85.decode(public.encode("ascii"))).hexdigest()
    return "-".join(digest[start : start + 4] for start in range(0, 16, 4))


class AllowList:
    """The keys that may connect, and which device each one is. Changes take effect at the next handshake or message.

    Readers take one reference to an immutable dict, so that no lock is on the path of a message.
    """

    def __init__(self, devices: Mapping[str, str] | None = None) -> None:
        self._changing = threading.Lock()
        self._devices: dict[str, str] = {}
        self.replace(devices or {})

    def __len__(self) -> int:
        return len(self._devices)

    def __contains__(self, key: str) -> bool:
        return key in self._devices

    def device(self, key: str) -> str | None:
        """Name of the device that owns the key, None for a key that is not on the list."""
        return self._devices.get(key)

    def allow(self, key: str, device: str) -> None:
        """Put a key on the list. Raises ConfigError for something that is no key."""
        check_public_key(key)
        with self._changing:
            self._devices = {**self._devices, key: device}

    def revoke(self, key: str) -> None:
        """Take a key off the list: its messages are dropped from now on, its next handshake fails."""
        with self._changing:
            self._devices = {listed: device for listed, device in self._devices.items() if listed != key}

    def replace(self, devices: Mapping[str, str]) -> None:
        """The whole list, key → device. Raises ConfigError for something that is no key; the old list stays then."""
        for key in devices:
            check_public_key(key)
        with self._changing:
            self._devices = dict(devices)


class Gatekeeper:
    """Answers the ZAP requests of one context from an AllowList and counts what it refused, in a thread of its own.

    pyzmq's ThreadAuthenticator does the former on an asyncio loop; this one spares the worker asyncio (DESIGN 3:
    blocking sockets, no event loop). A context can have one only. It also reads the server's monitor: libzmq's I/O
    thread would block on a monitor that nobody reads, and any stranger can make it speak.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], server: zmq.Socket[bytes], allow: AllowList) -> None:
        self.refused = 0
        """Handshakes with a key that is not on the list, with another server's key, or that were none."""
        self._allow = allow
        self._failures = server.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
        )
        self._requests = context.socket(zmq.REP)
        self._requests.bind(ZAP_ENDPOINT)
        endpoint = f"inproc://gatekeeper-{id(self):x}"
        self._stop = context.socket(zmq.PAIR)
        self._stop.bind(endpoint)
        self._stopped = context.socket(zmq.PAIR)
        self._stopped.connect(endpoint)
        for socket in (self._failures, self._requests, self._stop, self._stopped):
            socket.linger = 0
        # From here on the first two and the last belong to the thread.
        self._thread = threading.Thread(target=self._run, name="gatekeeper", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop the thread; handshakes in progress fail."""
        if not self._stop.closed:
            self._stop.send(b"")
            self._thread.join()
            self._stop.close()

    def _run(self) -> None:
        poller = zmq.Poller()
        sockets = (self._stopped, self._requests, self._failures)
        for socket in sockets:
            poller.register(socket, zmq.POLLIN)
        while True:
            ready = dict(poller.poll())
            if self._stopped in ready:
                for socket in sockets:
                    socket.close()
                return
            if self._requests in ready:
                self._requests.send_multipart(self._answer(self._requests.recv_multipart()))
            if self._failures in ready:
                self._failures.recv_multipart()
                self.refused += 1

    def _answer(self, request: list[bytes]) -> list[bytes]:
        """RFC 27: [version, id, domain, address, identity, mechanism, credentials…] to [version, id, status, …]."""
        request_id = request[1] if len(request) > 1 else b""
        if len(request) == 7 and request[0] == ZAP_VERSION and request[2] == ZAP_DOMAIN.encode():
            mechanism, credential = request[5:7]
            key = z85.encode(credential).decode() if mechanism == b"CURVE" and len(credential) == 32 else ""
            if key in self._allow:
                return [ZAP_VERSION, request_id, b"200", b"OK", key.encode(), b""]
        self.refused += 1
        return [ZAP_VERSION, request_id, b"400", b"this key is not on the list", b"", b""]


def _is_key(text: str) -> bool:
    if len(text) != KEY_LENGTH or not text.isascii():
        return False
    try:
        return z85.encode(z85.decode(text.encode())) == text.encode()
    except (KeyError, ValueError, struct.error):  # outside the alphabet, or five characters above 32 bits
        return False


def secure_server(socket: zmq.Socket[bytes], keys: KeyPair) -> None:
    """Make a socket that will bind a CURVE server whose clients the context's Gatekeeper checks."""
    socket.curve_server = True
    socket.curve_secretkey = keys.secret.encode()
    socket.curve_publickey = keys.public.encode()
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
    socket.setsockopt_string(zmq.ZAP_DOMAIN, ZAP_DOMAIN)


def secure_client(socket: zmq.Socket[bytes], keys: KeyPair, server_key: str) -> None:
    """Make a socket that will connect a CURVE client of one server. Raises ConfigError for a bad server key."""
    socket.curve_serverkey = check_public_key(server_key).encode()
    socket.curve_publickey = keys.public.encode()
    socket.curve_secretkey = keys.secret.encode()
