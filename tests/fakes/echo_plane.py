"""A data plane that replies what it receives: `python -m tests.fakes.echo_plane BIND PUBLIC SECRET PEER`, until killed.

PUBLIC and SECRET are its key, PEER the public key of who may connect. Prints its endpoint.
"""

from __future__ import annotations

import sys

from agent.wire.data_plane import DataPlane
from agent.wire.events import Received
from agent.wire.security import AllowList, KeyPair


def main(bind: str, public: str, secret: str, peer: str) -> None:
    plane = DataPlane(KeyPair(public, secret), AllowList({peer: "peer"}), bind)
    print(plane.endpoint, flush=True)
    while True:
        for event in plane.poll(None):
            if isinstance(event, Received):
                plane.reply(event.origin, event.parts)


if __name__ == "__main__":
    main(*sys.argv[1:])
