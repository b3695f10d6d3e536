"""Answers kept for a while, so that a request whose answer got lost can be sent again.

Invariant: for one request id the work is done at most once while its answer is kept. Work that
failed or was cancelled had no effect, and is done anew.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

KEPT_SECONDS = 120.0
"""Longer than any client tries again."""


class Repeats:
    """Answers by request id."""

    def __init__(self, kept_seconds: float = KEPT_SECONDS) -> None:
        self._kept_seconds = kept_seconds
        self._answers: dict[str, asyncio.Future[bytes]] = {}
        self._done: deque[tuple[float, str]] = deque()

    async def once(self, request_id: str, work: Callable[[], Awaitable[bytes]]) -> bytes:
        """The answer that `work` gave to this request, doing it where nobody did."""
        while (earlier := self._answers.get(request_id)) is not None:
            await asyncio.wait({earlier})
            if not earlier.cancelled():
                return earlier.result()
        loop = asyncio.get_running_loop()
        answer = self._answers[request_id] = loop.create_future()
        try:
            answer.set_result(await work())
        except BaseException:
            del self._answers[request_id]
            answer.cancel()
            raise
        self._forget_old(loop.time())
        self._done.append((loop.time(), request_id))
        return answer.result()

    def _forget_old(self, now: float) -> None:
        while self._done and self._done[0][0] < now - self._kept_seconds:
            del self._answers[self._done.popleft()[1]]
