"""PostgreSQL's part of the readers: a read whose connection broke is read again."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TypeVar

import psycopg

from lightningrl.store.postgres.link import Link
from lightningrl.store.postgres.session import (
    BEGIN_READING,
    PostgresSession,
    is_lost,
    translated,
)
from lightningrl.store.session import Session

T = TypeVar("T")


class PostgresReader:
    """Implements `ReadSession`."""

    def __init__(self, link: Link) -> None:
        """`link` is its alone from now on."""
        self._link = link

    def read(self, operation: Callable[[Session], T]) -> T:
        """See `ReadSession.read`."""
        while True:
            session = self._link.session()
            try:
                result = self._once(session, operation)
            except psycopg.Error as error:
                if not is_lost(session.connection, error):
                    raise translated(self._link.name, error) from error
                self._link.broke(error)
            else:
                self._link.worked()
                return result

    def _once(self, session: PostgresSession, operation: Callable[[Session], T]) -> T:
        try:
            session.begin(BEGIN_READING)
            result = operation(session)
            session.control("COMMIT")
        except BaseException:
            with contextlib.suppress(psycopg.Error):  # a broken connection has rolled back
                session.control("ROLLBACK")
            raise
        return result

    def close(self) -> None:
        """See `ReadSession.close`."""
        self._link.close()
