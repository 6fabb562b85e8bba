"""A TCP link that can be stopped: connections go through it byte by byte, and stand still while it is."""

from __future__ import annotations

import select
import socket
import threading
from types import TracebackType

CHUNK_BYTES = 1 << 16


class TcpProxy:
    """Listens on loopback and forwards to one address, in a thread. While it stalls it takes in and passes on nothing;
    the kernels at both ends still acknowledge what fits their buffers, as they would in front of a slow radio."""

    def __init__(self, target: str) -> None:
        host, _, port = target.removeprefix("tcp://").rpartition(":")
        self._target = (host, int(port))
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self._listening.getsockname()[1]}"
        self._others: dict[socket.socket, socket.socket] = {}
        self._goes = threading.Event()
        self._goes.set()
        self._waking, self._wake = socket.socketpair()
        self._is_closed = False
        self._cuts = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def __enter__(self) -> TcpProxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_closed = True
        self._goes.set()
        self._wake.send(b"x")
        self._thread.join()
        for one in (self._listening, self._waking, self._wake, *self._others):
            one.close()

    def stall(self) -> None:
        self._goes.clear()

    def resume(self) -> None:
        self._goes.set()

    def cut(self) -> None:
        """End every connection there is; new ones go through."""
        self._cuts = True
        self._wake.send(b"x")

    def _run(self) -> None:
        while not self._is_closed:
            ready, _, _ = select.select([self._waking, self._listening, *self._others], [], [])
            self._goes.wait()
            if self._waking in ready:
                self._waking.recv(CHUNK_BYTES)
            if self._cuts:
                self._cuts = False
                while self._others:
                    self._others.popitem()[0].close()
                continue
            for one in ready:
                if one is self._listening:
                    self._accept()
                elif one is not self._waking and one in self._others:
                    self._forward(one)

    def _accept(self) -> None:
        client, _ = self._listening.accept()
        try:
            server = socket.create_connection(self._target)
        except OSError:
            client.close()
            return
        self._others |= {client: server, server: client}

    def _forward(self, one: socket.socket) -> None:
        try:
            data = one.recv(CHUNK_BYTES)
            self._others[one].sendall(data)
        except OSError:
            data = b""
        if not data:
            other = self._others.pop(one)
            del self._others[other]
            one.close()
            other.close()
