"""The supervisor's second child, where the owner lets others fetch layers from here: started, restarted, ended.

It is a help to others only: whatever becomes of it, this device goes on serving.
"""

from __future__ import annotations

import logging
import subprocess

from agent.config import AgentConfig
from agent.errors import BadMessage
from agent.wire.control_plane import ControlClient
from agent.wire.message import Message
from agent.wire.messages import Welcome
from agent.worker_channel import ChannelClosed, Configure, Stop, WorkerChannel, start_child

logger = logging.getLogger(__name__)

RESTART_S = 30.0
"""Between two starts: an address that is taken stays taken for a while."""
SETTLE_S = 10.0
"""How long the coordinator's greeting waits for a child that says nothing."""
STOP_S = 2.0
SEND_S = 1.0
"""A child that takes nothing from its pipe for so long is replaced: whoever waits for it cannot say that it lives."""


class BulkReady(Message, frozen=True):
    """The child's first message: its socket is bound."""

    endpoint: str


class WeightChild:
    """The process that serves `agent.weight_server.serve`; its pipe is watched by the supervisor's poll."""

    def __init__(self, config: AgentConfig, client: ControlClient) -> None:
        self.endpoint = ""
        """Where it serves, empty while it does not."""
        self.is_settled = False
        """It has said where it serves, or ended before it could: nobody need wait for it."""
        self._config = config
        self._client = client
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: WorkerChannel | None = None
        self._welcome: Welcome | None = None
        self._start_at_s = float("-inf")

    def tend(self, now: float) -> bool:
        """Start it when it does not run; called several times a second. True as in `on_readable`."""
        was_settled = self.is_settled
        if self._process is None and now >= self._start_at_s:
            self._start_at_s = now + RESTART_S
            self._start()
        self.is_settled |= now >= self._start_at_s - RESTART_S + SETTLE_S
        return self.is_settled != was_settled

    def _start(self) -> None:
        try:
            self._process, ours = start_child("agent.weight_server")
        except OSError as problem:
            logger.warning("weight_server_not_started", extra={"problem": str(problem), "restart_in_s": RESTART_S})
            self._forget()
            return
        ours.settimeout(SEND_S)
        self._channel = WorkerChannel(ours)
        self._client.register(ours.fileno())
        self._send(Configure.of(self._config))
        if self._welcome is not None:
            self._send(self._welcome)

    def owns(self, descriptor: int) -> bool:
        """Whether a Readable event is about it."""
        return self._channel is not None and self._channel.fileno() == descriptor

    def on_readable(self) -> bool:
        """True when what the coordinator should know of it has changed."""
        before = (self.is_settled, self.endpoint)
        try:
            assert self._channel is not None, "asked only for what it owns"
            for message in self._channel.receive(BulkReady):
                self.endpoint, self.is_settled = message.endpoint, True
                logger.info("weights_given_at", extra={"endpoint": self.endpoint})
        except (ChannelClosed, BadMessage):
            self._ended()
        return before != (self.is_settled, self.endpoint)

    def welcome(self, message: Welcome) -> None:
        """Whoever may connect to this device may fetch from it."""
        self._welcome = message
        if self._channel is not None:
            self._send(message)

    def stop(self) -> None:
        """End it; a chunk on its way is lost."""
        if self._process is None:
            return
        self._send(Stop())
        if self._process is not None:
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._forget()

    def _send(self, message: Message) -> None:
        try:
            if self._channel is not None:
                self._channel.send(message)
        except ChannelClosed:
            self._ended()

    def _ended(self) -> None:
        assert self._process is not None, "it had a pipe"
        self._process.kill()
        status = self._process.wait()
        logger.warning("weight_server_ended", extra={"status": status, "restart_in_s": RESTART_S})
        self._forget()

    def _forget(self) -> None:
        if self._channel is not None:
            self._client.unregister(self._channel.fileno())
            self._channel.close()
        self._process = self._channel = None
        self.endpoint, self.is_settled = "", True
