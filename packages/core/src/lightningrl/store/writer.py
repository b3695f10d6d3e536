"""All that is written goes through here, one transaction at a time, with group commit.

Operations submitted in one tick of the event loop, and all that pile up while a commit is under way,
are one batch, which the database's `Committer` runs in one transaction. A submitter's answer comes
after the commit, so what was answered is in the database.

Commits have a thread. One that is short is done in the event loop itself where the thread has nothing to
do: handing it over and being woken again costs more than the commit. Invariant: batches are committed
one after the other in the order of their submission, whichever thread does it.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from lightningrl.errors import StoreUnavailable
from lightningrl.store.session import Session, Wake

T = TypeVar("T")

_BATCH = 512
"""Operations in one transaction at most, which bounds how long the first of them waits."""


_GATHER_TICKS = 4
"""Ticks of the event loop for which operations are gathered, as long as each brings more: a transaction of
sixteen costs a third, per operation, of sixteen transactions."""

_AT_ONCE_ROWS = 32
"""Rows that the event loop may write itself; it stands still for about a millisecond meanwhile."""


_MANY_ROWS = 1_000_000


@dataclass(slots=True)
class Operation:
    """Something to write, and what became of it."""

    run: Callable[[Session], Any]
    """Changes nothing but the database, so that it can run again after a rollback."""
    rows: int
    """About how many rows it writes."""
    future: asyncio.Future[Any]
    result: Any = None
    error: BaseException | None = None
    """None: it is committed."""


class Committer(Protocol):
    """What a database does for its writer; never two methods at once."""

    @property
    def is_short(self) -> bool:
        """Whether a commit waits for no disk and no network, so that an event loop may do it."""
        ...

    @property
    def wants_rest(self) -> bool:
        """Whether there is something to do in `rest`."""
        ...

    def commit(self, batch: Sequence[Operation]) -> frozenset[Wake]:
        """Run `batch` in one transaction and fill in `result` or `error`; return what to wake.

        An operation that fails undoes only itself. Raises nothing.
        """
        ...

    def rest(self, idle: bool) -> None:
        """Called in the thread after a batch was answered; `idle` where no other waits."""
        ...

    def close(self) -> None:
        """Let go of the connection."""
        ...


class Writer:
    """Runs operations through `committer`, which is its alone from now on."""

    def __init__(
        self, name: str, committer: Committer, on_commit: Callable[[frozenset[Wake]], None]
    ) -> None:
        """Start the thread.

        Args:
            name: Of the store, for messages.
            committer: Holds the only connection of this process that writes.
            on_commit: Called in the submitter's event loop after a commit that changed something
                that is waited for.
        """
        self._name = name
        self._committer = committer
        self._on_commit = on_commit
        self._pending: dict[asyncio.AbstractEventLoop, list[Operation]] = {}
        self._batches: queue.SimpleQueue[list[Operation] | None] = queue.SimpleQueue()
        self._under_way: deque[list[Operation]] = deque()
        """What the thread was given and has not committed yet."""
        self._committing = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="lightningrl-writer", daemon=True)
        self._thread.start()

    def submit(
        self, operation: Callable[[Session], T], *, rows: int | None = None
    ) -> asyncio.Future[T]:
        """Run `operation` in the writer's next transaction; done when that is committed.

        Once submitted, the operation runs even if the future is cancelled.

        Args:
            operation: What to write.
            rows: About how many rows it writes. None: too many to say.

        Raises:
            StoreUnavailable: the store is closed, or (by the future) the commit failed; then nothing
                was written.
        """
        if self._closed:
            raise StoreUnavailable(f"the store {self._name!r} is closed")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        pending = self._pending.get(loop)
        if pending is None:
            pending = self._pending[loop] = []
            loop.call_soon(self._gather, loop, 0, _GATHER_TICKS)
        pending.append(Operation(operation, _MANY_ROWS if rows is None else rows, future))
        return future

    async def close(self) -> None:
        """Run what was submitted, then end the thread and close the connection."""
        self._closed = True
        for loop in list(self._pending):
            self._flush(loop)
        self._batches.put(None)
        await asyncio.to_thread(self._thread.join)

    def _gather(self, loop: asyncio.AbstractEventLoop, seen: int, ticks: int) -> None:
        """Flush once a tick of the loop has brought nothing more, or after so many `ticks`."""
        submitted = len(self._pending.get(loop, ()))
        if submitted > seen and ticks > 0:
            loop.call_soon(self._gather, loop, submitted, ticks - 1)
        else:
            self._flush(loop)

    def _flush(self, loop: asyncio.AbstractEventLoop) -> None:
        pending = self._pending.pop(loop, None)
        if pending and not self._commit_at_once(pending):
            self._hand_over(pending)

    def _hand_over(self, batch: list[Operation]) -> None:
        self._under_way.append(batch)
        self._batches.put(batch)

    def _commit_at_once(self, batch: list[Operation]) -> bool:
        """Commit in the event loop; False, and nothing done, where that is the thread's work."""
        committer = self._committer
        rows = sum(operation.rows for operation in batch)
        if rows > _AT_ONCE_ROWS or not committer.is_short or self._under_way:
            return False
        if not self._committing.acquire(blocking=False):
            return False
        try:
            wakes = committer.commit(batch)
            if committer.wants_rest:
                self._hand_over([])
        finally:
            self._committing.release()
        self._settle(batch, wakes)
        return True

    # -- in the thread -------------------------------------------------------------------------

    def _run(self) -> None:
        open_ = True
        while open_:
            batches, open_ = self._next_batches()
            batch = [operation for one in batches for operation in one]
            with self._committing:
                wakes = self._committer.commit(batch) if batch else frozenset[Wake]()
                for _ in batches:
                    self._under_way.popleft()
            self._answer(batch, wakes)
            if self._committer.wants_rest:
                with self._committing:
                    self._committer.rest(self._batches.empty())
        self._committer.close()

    def _next_batches(self) -> tuple[list[list[Operation]], bool]:
        """What waits, and whether more may come."""
        first = self._batches.get()
        if first is None:
            return [], False
        batches, size = [first], len(first)
        while size < _BATCH:
            try:
                more = self._batches.get_nowait()
            except queue.Empty:
                break
            if more is None:
                return batches, False
            batches.append(more)
            size += len(more)
        return batches, True

    def _answer(self, batch: list[Operation], wakes: frozenset[Wake]) -> None:
        by_loop: dict[asyncio.AbstractEventLoop, list[Operation]] = {}
        for operation in batch:
            by_loop.setdefault(operation.future.get_loop(), []).append(operation)
        for loop, operations in by_loop.items():
            try:
                loop.call_soon_threadsafe(self._settle, operations, wakes)
            except RuntimeError:
                continue  # the loop is closed: nobody waits for these answers any more

    def _settle(self, operations: list[Operation], wakes: frozenset[Wake]) -> None:
        for operation in operations:
            if operation.future.done():  # the waiting for it was cancelled
                continue
            if operation.error is None:
                operation.future.set_result(operation.result)
            else:
                operation.future.set_exception(operation.error)
        if wakes:
            self._on_commit(wakes)
