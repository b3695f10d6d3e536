"""Ports that tests must know before a server listens on them."""

from __future__ import annotations

import socket
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def held_port() -> Generator[int]:
    """A loopback port that the system gives to nobody else until the block ends.

    Nobody listens there, so connections are refused, until a server of the test's does that asks for
    `SO_REUSEADDR`, as servers do on Linux: two sockets may share a port so while at most one of them listens.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]
