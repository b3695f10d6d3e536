"""The one connection of a process that listens: it tells who waits of other processes' commits.

Notifications are hints. One may be lost with the connection, so all waiters are woken whenever it was
made anew, and they look by themselves every few seconds (`SqlStore`'s `look_seconds`): a lost one
delays, it never hangs.
"""

from __future__ import annotations

import logging
import selectors
import socket
import threading
from collections.abc import Callable, Iterable

import psycopg

from lightningrl.errors import ConfigError, StoreUnavailable
from lightningrl.store.postgres.link import Link
from lightningrl.store.postgres.session import PostgresSession
from lightningrl.store.session import Wake

_LOG = logging.getLogger(__name__)

_AGAIN_SECONDS = 0.5
"""How long after a failed connection the next is tried."""

CHANNEL = "lightningrl"
"""Where commits are told of."""


def payload(writer: str, wakes: Iterable[Wake]) -> str:
    """What a commit says: who wrote, and what may be waited for."""
    return " ".join((writer, *sorted(wakes)))


class Listener:
    """A thread that listens until it is closed."""

    def __init__(
        self, link: Link, writer: str | None, on_wake: Callable[[frozenset[Wake]], None]
    ) -> None:
        """Start listening.

        Args:
            link: Its alone from now on; prepared by `listen`.
            writer: This process's own writer, whose commits it knows of already.
            on_wake: Called in the listener's thread.
        """
        self._link = link
        self._writer = writer
        self._on_wake = on_wake
        self._closing, self._closed = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="lightningrl-listener", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._closing.close()
        self._thread.join()
        self._closed.close()

    def _run(self) -> None:
        told: type[Exception] | None = None
        while True:
            try:
                session = self._link.session()
                session.control(f"LISTEN {CHANNEL}")
                self._on_wake(frozenset(Wake))  # of what happened while nobody listened
                told = None
                self._listen(session)
                break
            except (StoreUnavailable, ConfigError, psycopg.Error) as error:
                self._link.close()
                if told is not type(error):
                    _LOG.warning("not listening, so waiting is slower: %s", str(error).strip())
                    told = type(error)
                if self._is_closed_within(_AGAIN_SECONDS):
                    break
        self._link.close()

    def _is_closed_within(self, seconds: float) -> bool:
        with selectors.DefaultSelector() as selector:
            selector.register(self._closed, selectors.EVENT_READ)
            return bool(selector.select(seconds))

    def _listen(self, session: PostgresSession) -> None:
        """Hand on what is told until the listener is closed."""
        connection = session.connection
        with selectors.DefaultSelector() as selector:
            selector.register(self._closed, selectors.EVENT_READ)
            selector.register(connection.fileno(), selectors.EVENT_READ)
            while True:
                for notice in connection.notifies(timeout=0):
                    self._hand_on(notice.payload)
                ready = selector.select()
                if any(key.fileobj is self._closed for key, _ in ready):
                    return

    def _hand_on(self, text: str) -> None:
        writer, *names = text.split()
        known = {wake.value: wake for wake in Wake}
        if writer != self._writer:
            # A process of a later version may tell of more than this one knows.
            self._on_wake(frozenset(known[name] for name in names if name in known))
