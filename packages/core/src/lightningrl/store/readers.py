"""Threads that read, each with a connection of its own, so that no read blocks the event loop.

Each read is one transaction: it sees one state of the store, and every write that was answered
before it began.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from lightningrl.errors import StoreUnavailable
from lightningrl.store.session import Session, open_session, translating

T = TypeVar("T")

_THREADS = 2
"""So that one long read (the events of a whole iteration) doesn't hold up the short ones."""


class Readers:
    """Reads the store at `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._local = threading.local()
        self._sessions: list[Session] = []
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="lightningrl-reader")
        self._closed = False

    async def read(self, operation: Callable[[Session], T]) -> T:
        """Run `operation` in a read transaction.

        Raises:
            StoreUnavailable: the store is closed, gone or damaged.
        """
        if self._closed:
            raise StoreUnavailable(f"the store {str(self._path)!r} is closed")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, self._read, operation)

    async def close(self) -> None:
        """Finish the reads under way and close the connections."""
        self._closed = True
        await asyncio.to_thread(self._pool.shutdown)
        for session in self._sessions:
            session.connection.close()

    def _read(self, operation: Callable[[Session], T]) -> T:
        session: Session | None = getattr(self._local, "session", None)
        if session is None:
            session = self._local.session = open_session(self._path, read_only=True)
            self._sessions.append(session)
        with translating(self._path), session.transaction():
            return operation(session)
