"""A connection that comes back: whoever uses it asks for the session and reports when it broke.

Invariant: an outage is waited out for `patience_seconds` from its first moment; after that every call
fails at once, until a connection is there again.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import psycopg

from lightningrl.errors import StoreUnavailable
from lightningrl.machine.clock import Clock
from lightningrl.store.postgres.session import PostgresSession, connect

_FIRST_PAUSE_SECONDS = 0.02
_LONGEST_PAUSE_SECONDS = 0.5


class Unreachable(StoreUnavailable):
    """The server can't be reached, or what answers there now is not the store."""


class Link:
    """Used by one thread at a time."""

    def __init__(
        self,
        url: str,
        name: str,
        patience_seconds: float,
        prepare: Callable[[PostgresSession], None],
        clock: Clock | None = None,
    ) -> None:
        """Connect when first asked.

        Args:
            url: libpq's.
            name: `url` without its password.
            patience_seconds: How long an outage is waited out.
            prepare: Looks at each new connection before it is used; raises `ConfigError` where it
                leads to no store of this version.
            clock: In the place of the database's.
        """
        self._url = url
        self.name = name
        self._patience_seconds = patience_seconds
        self._prepare = prepare
        self._clock = clock
        self._session: PostgresSession | None = None
        self._lost_at: float | None = None
        self._pause_seconds = 0.0

    @property
    def connected(self) -> PostgresSession | None:
        """The session, where there is one."""
        return self._session

    def session(self) -> PostgresSession:
        """The session, connected anew where that is needed.

        Raises:
            Unreachable: there is none within the time.
        """
        while self._session is None:
            try:
                self._session = self._connected()
            except psycopg.OperationalError as error:
                self._wait(error)
        return self._session

    def worked(self) -> None:
        """The session did what it was asked for: an outage, if there was one, is over."""
        self._lost_at = None

    def broke(self, error: psycopg.Error) -> None:
        """The session is of no use any more; return when it is time to ask for another.

        Raises:
            Unreachable: it breaks again and again.
        """
        self.close()
        self._wait(error)

    def close(self) -> None:
        """Let go of the connection."""
        if self._session is not None:
            self._session.connection.close()
            self._session = None

    def _wait(self, error: psycopg.Error) -> None:
        now = time.monotonic()
        if self._lost_at is None:
            self._lost_at, self._pause_seconds = now, 0.0
        waited = now - self._lost_at
        if waited + self._pause_seconds >= self._patience_seconds:
            raise Unreachable(_unreachable(self.name, error, waited)) from error
        time.sleep(self._pause_seconds)
        self._pause_seconds = min(
            max(2 * self._pause_seconds, _FIRST_PAUSE_SECONDS), _LONGEST_PAUSE_SECONDS
        )

    def _connected(self) -> PostgresSession:
        session = PostgresSession(self.name, connect(self._url, self.name), self._clock)
        try:
            self._prepare(session)
        except BaseException:
            session.connection.close()
            raise
        return session


def _unreachable(name: str, error: psycopg.Error, waited_seconds: float) -> str:
    what = (str(error).strip() or type(error).__name__).splitlines()[0]
    waited = f" for {waited_seconds:.0f} seconds" if waited_seconds >= 1 else ""
    return (
        f"the store {name!r} can't be reached{waited} ({what}); check that PostgreSQL runs there "
        "and lets you in"
    )
