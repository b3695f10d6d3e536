"""SQLite's part of the writer: one transaction per batch.

A batch runs as if nothing in it could fail, which is nearly always so; where something does, all of it
is rolled back and runs again with a savepoint per operation, so that what fails undoes only itself. The
write-ahead log is checkpointed after a batch was answered, which keeps that out of everyone's latency. A log
that has what was deleted since is emptied as soon as nobody waits and no reader needs it, at the latest at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import apsw

from lightningrl.store.session import Wake
from lightningrl.store.sqlite.session import BUSY_MS, SqliteSession, translated
from lightningrl.store.writer import Operation

_CHECKPOINT_PAGES = 4_000
"""Pages (1 KiB) in the write-ahead log from which on an idle writer checkpoints."""

_CHECKPOINT_PAGES_BUSY = 32_000
"""Pages from which on it checkpoints though operations wait, so that the log stays near 32 MiB."""

_NORMAL = 1
"""SQLite's `synchronous` up to which a commit doesn't wait for the disk."""


class SqliteCommitter:
    """Implements `Committer`."""

    def __init__(self, session: SqliteSession) -> None:
        """`session` is its alone from now on, and the only one that writes the file."""
        self._session = session
        self._syncs = session.connection.pragma("synchronous") > _NORMAL
        self._log_pages = 0
        self._log_has_deleted = False
        session.connection.set_wal_hook(self._note_log_pages)

    @property
    def is_short(self) -> bool:
        """See `Committer.is_short`."""
        return not self._syncs

    @property
    def wants_rest(self) -> bool:
        """See `Committer.wants_rest`."""
        return self._log_has_deleted or self._log_pages >= _CHECKPOINT_PAGES

    def commit(self, batch: Sequence[Operation]) -> frozenset[Wake]:
        """See `Committer.commit`."""
        if not self._all(batch, self._run) and len(batch) > 1:
            self._all(batch, self._run_apart)
        return frozenset(self._session.wakes)

    def _all(self, batch: Sequence[Operation], run: Callable[[Operation], None]) -> bool:
        """Run `batch` in one transaction; whether it is committed."""
        session = self._session
        session.wakes.clear()
        for operation in batch:
            operation.error = None
        try:
            with session.transaction("BEGIN IMMEDIATE"):
                for operation in batch:
                    run(operation)
        except Exception as error:  # noqa: BLE001  each submitter gets it as its own error
            session.bases.rolled_back()
            session.wakes.clear()
            for operation in batch:
                operation.error = operation.error or self._reason(error)
            return False
        finally:
            if session.erasing:
                session.connection.pragma("secure_delete", "fast")
                session.erasing = False
                self._log_has_deleted = True
        session.bases.committed()
        return True

    def rest(self, idle: bool) -> None:
        """See `Committer.rest`."""
        if self._log_has_deleted and idle:
            self._empty_log()
        if self._log_pages < (_CHECKPOINT_PAGES if idle else _CHECKPOINT_PAGES_BUSY):
            return
        try:
            # Passive never waits for readers. As nobody writes meanwhile it gets to the log's end,
            # and the next transaction starts the log anew unless a reader still needs it.
            self._session.connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        except apsw.Error:
            # Nothing is lost: the log keeps what the file lacks, and the next commit's page count
            # leads back here.
            return
        self._log_pages = 0

    def close(self) -> None:
        """See `Committer.close`."""
        if self._log_has_deleted:
            self._empty_log()
        self._session.close()

    def _empty_log(self) -> None:
        """Fold the log in and cut it, unless a reader needs it: then the next batch, or the end, tries again."""
        connection = self._session.connection
        connection.set_busy_timeout(0)
        try:
            connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        except apsw.Error:
            return
        finally:
            connection.set_busy_timeout(BUSY_MS)
        self._log_has_deleted = False
        self._log_pages = 0

    def _run(self, operation: Operation) -> None:
        operation.result = operation.run(self._session)

    def _run_apart(self, operation: Operation) -> None:
        """Run one operation; leave nothing of it if it fails.

        Raises only where the whole transaction is lost.
        """
        session = self._session
        session.connection.execute("SAVEPOINT operation")
        try:
            self._run(operation)
        except Exception as error:
            operation.error = self._reason(error)
            session.bases.rolled_back()
            if not session.connection.in_transaction:
                raise  # SQLite rolled everything back: a full disk, an I/O error
            session.connection.execute("ROLLBACK TO operation")
        session.connection.execute("RELEASE operation")

    def _reason(self, error: Exception) -> Exception:
        return translated(self._session.path, error) if isinstance(error, apsw.Error) else error

    def _note_log_pages(self, _connection: apsw.Connection, _name: str, pages: int) -> int:
        self._log_pages = pages
        return apsw.SQLITE_OK
