"""PostgreSQL's part of the writer: one transaction per batch, and none of it twice or half.

A batch runs without savepoints, which would cost as much as the operations; where one operation fails,
the transaction is rolled back and the batch runs again, each operation inside a savepoint. Where another
process is in the way (a deadlock, or the same row inserted by both), each operation runs again in a
transaction of its own.

Locks are taken in one order: of an iteration (`give_live`, `take`), of attempts, of rollouts, each by key, and
last that of the order of completion. A cancel finds an attempt by its rollout, and a batch locks what its
operations happen to name: where that ends in a deadlock, PostgreSQL breaks off one of the two.

Invariant: a batch whose connection broke before COMMIT was sent is not in the database and runs again.
One whose connection broke during COMMIT is looked up: its transaction began by writing the batch's number
into this writer's row, so the row says whether it was committed, and reading it for update waits until
what is left of that transaction has ended.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Sequence

import psycopg
from psycopg import errors

from lightningrl.errors import ConfigError, LightningError
from lightningrl.store.postgres.link import Link, Unreachable
from lightningrl.store.postgres.listener import CHANNEL, payload
from lightningrl.store.postgres.session import BEGIN, PostgresSession, is_lost, translated
from lightningrl.store.rows import seconds_to_us
from lightningrl.store.session import Wake
from lightningrl.store.writer import Operation

_TRIES = 5
"""How often an operation runs alone that others are in the way of."""

_CONTENTION = (
    errors.DeadlockDetected,
    errors.SerializationFailure,
    errors.UniqueViolation,  # another process inserted it meanwhile: looked for again, it is found
    errors.LockNotAvailable,
)

_FORGET_SECONDS = 7 * 24 * 3600.0
"""After this time the row of a writer that was killed is removed."""

_NOTE_BATCH = """
INSERT INTO writers (name, batch, seen_us)
VALUES ('{writer}', {batch}, CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint))
ON CONFLICT (name) DO UPDATE SET batch = excluded.batch, seen_us = excluded.seen_us"""


class PostgresCommitter:
    """Implements `Committer`."""

    is_short = False
    wants_rest = False

    def __init__(self, link: Link) -> None:
        """`link` is its alone from now on."""
        self._link = link
        self.writer = uuid.uuid4().hex
        """Names this writer among all processes."""
        self._batch = 0

    def commit(self, batch: Sequence[Operation]) -> frozenset[Wake]:
        """See `Committer.commit`."""
        try:
            if len(batch) > 1:
                for guarded in (False, True):
                    wakes = self._together(batch, guarded=guarded)
                    if wakes is not None:
                        return wakes
        except Unreachable as error:
            _fail(batch, error)
            return frozenset()
        return self._one_by_one(batch)

    def rest(self, idle: bool) -> None:
        """See `Committer.rest`: PostgreSQL tidies up by itself."""

    def close(self) -> None:
        """See `Committer.close`."""
        session = self._link.connected
        if session is not None:
            with contextlib.suppress(psycopg.Error):  # the row is forgotten in a week
                session.begin(BEGIN)
                session.run("remove_writer", name=self.writer)
                before_us = session.now_us() - seconds_to_us(_FORGET_SECONDS)
                session.run("forget_writers", before_us=before_us)
                session.control("COMMIT")
        self._link.close()

    def _together(self, batch: Sequence[Operation], *, guarded: bool) -> frozenset[Wake] | None:
        """Run `batch` in one transaction; None where that was rolled back."""
        try:
            return self._transaction(batch, guarded=guarded)
        except Unreachable:
            raise
        except Exception:  # noqa: BLE001  it is raised again, and told, where each runs alone
            return None

    def _one_by_one(self, batch: Sequence[Operation]) -> frozenset[Wake]:
        wakes: frozenset[Wake] = frozenset()
        for place, operation in enumerate(batch):
            try:
                wakes |= self._alone(operation)
            except Unreachable as error:
                _fail(batch[place:], error)
                break
        return wakes

    def _alone(self, operation: Operation) -> frozenset[Wake]:
        for left in reversed(range(_TRIES)):
            try:
                return self._transaction([operation], guarded=False)
            except Unreachable:
                raise
            except _CONTENTION as error:
                if not left:
                    operation.error = self._reason(error)
            except Exception as error:  # noqa: BLE001  its submitter gets it
                operation.error = self._reason(error)
                break
        return frozenset()

    def _transaction(self, batch: Sequence[Operation], *, guarded: bool) -> frozenset[Wake]:
        """Run `batch` until it is committed.

        Raises:
            Unreachable: the server could not be reached in time.
            Exception: what an operation raised, or the commit; nothing was written.
        """
        while True:
            session = self._session()
            try:
                self._run(session, batch, guarded=guarded)
            except Exception as error:
                if not isinstance(error, psycopg.Error) or not _is_lost(session, error):
                    self._undo(session)
                    raise
                self._link.broke(error)
                continue
            wakes = frozenset(session.wakes)
            if self._commit(session, wakes):
                self._link.worked()
                return wakes

    def _run(self, session: PostgresSession, batch: Sequence[Operation], *, guarded: bool) -> None:
        """Begin a transaction and run `batch` in it; where `guarded`, a failure is its operation's."""
        self._batch += 1
        session.wakes.clear()
        session.begin(BEGIN, _NOTE_BATCH.format(writer=self.writer, batch=self._batch))
        for operation in batch:
            operation.error = None
            if guarded:
                self._guarded(session, operation)
            else:
                operation.result = operation.run(session)

    def _guarded(self, session: PostgresSession, operation: Operation) -> None:
        session.control("SAVEPOINT operation")
        try:
            operation.result = operation.run(session)
        except Exception as error:
            if _is_lost(session, error) or isinstance(error, _CONTENTION):
                raise
            operation.error = self._reason(error)
            session.bases.rolled_back()
            session.control("ROLLBACK TO operation")
        session.control("RELEASE operation")

    def _commit(self, session: PostgresSession, wakes: frozenset[Wake]) -> bool:
        """Commit; False where the connection broke and the transaction is not in the database."""
        notice = f"NOTIFY {CHANNEL}, '{payload(self.writer, wakes)}'; " if wakes else ""
        try:
            session.control(f"{notice}COMMIT")
        except psycopg.Error as error:
            if not _is_lost(session, error):
                self._undo(session)
                raise
            return self._is_committed(error)
        session.bases.committed()
        return True

    def _is_committed(self, broken: psycopg.Error) -> bool:
        """Whether the transaction during whose COMMIT the connection broke is in the database."""
        try:
            while True:
                self._link.broke(broken)
                session = self._session()
                try:
                    session.begin(BEGIN)
                    row = session.row("writer_batch", name=self.writer)
                    session.control("COMMIT")
                except psycopg.OperationalError as error:
                    # Lost again, or what is left of the transaction holds the row: PostgreSQL ends a
                    # silent one before long.
                    broken = error
                else:
                    return row is not None and row[0] == self._batch
        except Unreachable as error:
            raise Unreachable(
                f"{error}; whether the last change was written is not known: make it again, which "
                "changes nothing twice"
            ) from error

    def _session(self) -> PostgresSession:
        try:
            return self._link.session()
        except ConfigError as error:  # what answers after an outage is not what answered before
            raise Unreachable(str(error)) from error

    def _undo(self, session: PostgresSession) -> None:
        session.bases.rolled_back()
        with contextlib.suppress(psycopg.Error):  # a connection that broke has rolled back
            session.control("ROLLBACK")

    def _reason(self, error: Exception) -> Exception:
        return translated(self._link.name, error) if isinstance(error, psycopg.Error) else error


def _is_lost(session: PostgresSession, error: Exception) -> bool:
    if isinstance(error, errors.ReadOnlySqlTransaction):
        return True  # the server became a standby
    return isinstance(error, psycopg.Error) and is_lost(session.connection, error)


def _fail(batch: Sequence[Operation], error: LightningError) -> None:
    for operation in batch:
        operation.error = error
