"""Stopping a block of code from outside, for a stated reason, without touching its task otherwise.

Invariant: an interrupted block ends with the error of whoever interrupted it, and a cancellation that
came from elsewhere stays a cancellation. (`asyncio.timeout` works by the same counting.)
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from lightningrl.gateway.asgi import ClientGone, Receive


class Interruptible:
    """`with Interruptible(Error()) as block:` lets anyone end the block by `block.interrupt()`."""

    def __init__(self, error: Exception) -> None:
        self._error = error
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0
        self._interrupted = False

    def __enter__(self) -> Self:
        self._task = asyncio.current_task()
        self._cancelling = self._task.cancelling() if self._task else 0
        return self

    def interrupt(self) -> None:
        """End the block with its error; does nothing when it has ended, or was interrupted."""
        if self._task is not None and not self._interrupted:
            self._interrupted = True
            self._task.cancel()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        task, self._task = self._task, None
        if task is None or not self._interrupted:
            return
        if task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise self._error from None


class UntilHangup(Interruptible):
    """Ends its block with `ClientGone` when the client hangs up. For use after the body was read."""

    def __init__(self, receive: Receive) -> None:
        super().__init__(ClientGone())
        self._receive = receive
        self._watcher: asyncio.Task[None] | None = None

    def __enter__(self) -> Self:
        super().__enter__()
        self._watcher = asyncio.create_task(self._watch())
        return self

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.interrupt()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        watcher, self._watcher = self._watcher, None  # a cycle through it would outlive the call
        if watcher is not None:
            watcher.cancel()
        super().__exit__(kind, error, traceback)
