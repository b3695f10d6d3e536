"""The one thread that writes, with group commit.

Operations submitted in one tick of the event loop, and all that pile up while a commit is under way,
run in one transaction, each inside a savepoint of its own: one that fails undoes only itself. A
submitter's answer comes after COMMIT, so what was answered is in the file. The thread checkpoints the
write-ahead log after it has answered, which keeps that out of everyone's latency.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import apsw

from lightningrl.errors import StoreUnavailable
from lightningrl.store.session import Session, Wake, translated

T = TypeVar("T")

_BATCH = 512
"""Operations in one transaction at most, which bounds how long the first of them waits."""

_CHECKPOINT_PAGES = 1000
"""Pages (4 KiB) in the write-ahead log from which on an idle writer checkpoints."""

_CHECKPOINT_PAGES_BUSY = 8_000
"""Pages from which on it checkpoints though operations wait, so that the log stays near 32 MiB."""


@dataclass(slots=True)
class _Operation:
    run: Callable[[Session], Any]
    future: asyncio.Future[Any]
    result: Any = None
    error: BaseException | None = None


class Writer:
    """Runs operations on `session`, which is its alone from now on."""

    def __init__(self, session: Session, on_commit: Callable[[frozenset[Wake]], None]) -> None:
        """Start the thread.

        Args:
            session: The only connection that writes.
            on_commit: Called in the submitter's event loop after a commit that changed something
                that is waited for.
        """
        self._session = session
        self._on_commit = on_commit
        self._pending: dict[asyncio.AbstractEventLoop, list[_Operation]] = {}
        self._batches: queue.SimpleQueue[list[_Operation] | None] = queue.SimpleQueue()
        self._closed = False
        self._log_pages = 0
        session.connection.set_wal_hook(self._note_log_pages)
        self._thread = threading.Thread(target=self._run, name="lightningrl-writer", daemon=True)
        self._thread.start()

    async def submit(self, operation: Callable[[Session], T]) -> T:
        """Run `operation` in the writer's next transaction; return when it is committed.

        Once submitted, the operation runs even if the waiting for it is cancelled.

        Raises:
            StoreUnavailable: the store is closed, or the commit failed; then nothing was written.
        """
        if self._closed:
            raise StoreUnavailable(f"the store {str(self._session.path)!r} is closed")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        pending = self._pending.get(loop)
        if pending is None:
            pending = self._pending[loop] = []
            loop.call_soon(self._flush, loop)
        pending.append(_Operation(operation, future))
        return await future

    async def close(self) -> None:
        """Run what was submitted, then end the thread and close the connection."""
        self._closed = True
        for loop in list(self._pending):
            self._flush(loop)
        self._batches.put(None)
        await asyncio.to_thread(self._thread.join)

    def _flush(self, loop: asyncio.AbstractEventLoop) -> None:
        pending = self._pending.pop(loop, None)
        if pending:
            self._batches.put(pending)

    def _note_log_pages(self, _connection: apsw.Connection, _name: str, pages: int) -> int:
        self._log_pages = pages
        return apsw.SQLITE_OK

    # -- in the thread -------------------------------------------------------------------------

    def _run(self) -> None:
        open_ = True
        while open_:
            batch, open_ = self._next_batch()
            if batch:
                self._commit(batch)
                self._answer(batch)
            self._checkpoint()
        self._session.connection.close()

    def _next_batch(self) -> tuple[list[_Operation], bool]:
        """What waits, and whether more may come."""
        first = self._batches.get()
        if first is None:
            return [], False
        batch = list(first)
        while len(batch) < _BATCH:
            try:
                more = self._batches.get_nowait()
            except queue.Empty:
                break
            if more is None:
                return batch, False
            batch += more
        return batch, True

    def _commit(self, batch: list[_Operation]) -> None:
        session = self._session
        session.wakes.clear()
        try:
            with session.transaction("BEGIN IMMEDIATE"):
                for operation in batch:
                    self._apply(operation)
        except Exception as error:  # noqa: BLE001  each submitter gets it as its own error
            session.bases.rolled_back()
            session.wakes.clear()
            for operation in batch:
                operation.error = operation.error or self._reason(error)
        else:
            session.bases.committed()

    def _apply(self, operation: _Operation) -> None:
        """Run one operation; leave nothing of it if it fails.

        Raises only where the whole transaction is lost.
        """
        session = self._session
        session.connection.execute("SAVEPOINT operation")
        try:
            operation.result = operation.run(session)
        except Exception as error:
            operation.error = self._reason(error)
            session.bases.rolled_back()
            if not session.connection.in_transaction:
                raise  # SQLite rolled everything back: a full disk, an I/O error
            session.connection.execute("ROLLBACK TO operation")
        session.connection.execute("RELEASE operation")

    def _reason(self, error: Exception) -> Exception:
        return translated(self._session.path, error) if isinstance(error, apsw.Error) else error

    def _answer(self, batch: list[_Operation]) -> None:
        wakes = frozenset(self._session.wakes)
        by_loop: dict[asyncio.AbstractEventLoop, list[_Operation]] = {}
        for operation in batch:
            by_loop.setdefault(operation.future.get_loop(), []).append(operation)
        for loop, operations in by_loop.items():
            try:
                loop.call_soon_threadsafe(self._settle, operations, wakes)
            except RuntimeError:
                continue  # the loop is closed: nobody waits for these answers any more

    def _settle(self, operations: list[_Operation], wakes: frozenset[Wake]) -> None:
        for operation in operations:
            if operation.future.done():  # the waiting for it was cancelled
                continue
            if operation.error is None:
                operation.future.set_result(operation.result)
            else:
                operation.future.set_exception(operation.error)
        if wakes:
            self._on_commit(wakes)

    def _checkpoint(self) -> None:
        idle = self._batches.empty()
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
