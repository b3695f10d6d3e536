"""Threads that read, each with a connection of its own, so that no read blocks the event loop.

Each read is one transaction: it sees one state of the store, and every write that was answered
before it began.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

from lightningrl.errors import StoreUnavailable
from lightningrl.store.session import Session

T = TypeVar("T")

_THREADS = 2
"""So that one long read (the events of a whole iteration) doesn't hold up the short ones."""


class ReadSession(Protocol):
    """A connection that reads; used by one thread at a time."""

    def read(self, operation: Callable[[Session], T]) -> T:
        """Run `operation` in one read transaction; a database's errors leave as ours."""
        ...

    def close(self) -> None:
        """Let go of the connection."""
        ...


class Readers:
    """Reads the store `name`."""

    def __init__(self, name: str, connect: Callable[[], ReadSession]) -> None:
        """Connections are made when they are first needed.

        Args:
            name: Of the store, for messages.
            connect: Makes a connection for the thread that calls it.
        """
        self._name = name
        self._connect = connect
        self._local = threading.local()
        self._sessions: list[ReadSession] = []
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="lightningrl-reader")
        self._closed = False

    async def read(self, operation: Callable[[Session], T]) -> T:
        """Run `operation` in a read transaction.

        Raises:
            StoreUnavailable: the store is closed, gone or damaged.
        """
        if self._closed:
            raise StoreUnavailable(f"the store {self._name!r} is closed")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, self._read, operation)

    async def close(self) -> None:
        """Finish the reads under way and close the connections."""
        self._closed = True
        await asyncio.to_thread(self._pool.shutdown)
        for session in self._sessions:
            session.close()

    def _read(self, operation: Callable[[Session], T]) -> T:
        session: ReadSession | None = getattr(self._local, "session", None)
        if session is None:
            session = self._local.session = self._connect()
            self._sessions.append(session)
        return session.read(operation)
