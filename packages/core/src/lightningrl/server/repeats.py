"""Answers kept for a while, so that a request whose answer got lost can be sent again.

Invariant: for one request id the work is done at most once while its answer is kept, and what is kept
has a bound. Work that failed or was cancelled had no effect, and is done anew.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

KEPT_SECONDS = 120.0
"""Longer than any client tries again."""

KEPT_BYTES = 64 << 20
"""Beyond this the oldest answers go first: at half a kilobyte a claim, a thousand claims a second fit."""


class Repeats:
    """Answers by request id."""

    def __init__(self, kept_seconds: float = KEPT_SECONDS, *, kept_bytes: int = KEPT_BYTES) -> None:
        self._kept_seconds = kept_seconds
        self._kept_bytes = kept_bytes
        # Texts and bytes alone, so that the garbage collector has nothing to look through.
        self._answers: dict[str, bytes] = {}
        self._oldest_first: deque[tuple[float, str]] = deque()
        self._bytes = 0
        self._under_way: dict[str, asyncio.Future[None]] = {}

    async def once(self, request_id: str, work: Callable[[], Awaitable[bytes]]) -> bytes:
        """The answer that `work` gave to this request, doing it where nobody did."""
        while True:
            answer = self._answers.get(request_id)
            if answer is not None:
                return answer
            under_way = self._under_way.get(request_id)
            if under_way is None:
                return await self._do(request_id, work)
            await asyncio.wait({under_way})

    async def _do(self, request_id: str, work: Callable[[], Awaitable[bytes]]) -> bytes:
        loop = asyncio.get_running_loop()
        done = self._under_way[request_id] = loop.create_future()
        try:
            answer = await work()
            self._keep(loop.time(), request_id, answer)
        finally:
            del self._under_way[request_id]
            done.set_result(None)
        return answer

    def _keep(self, now: float, request_id: str, answer: bytes) -> None:
        self._answers[request_id] = answer
        self._oldest_first.append((now, request_id))
        self._bytes += len(answer)
        while self._oldest_first and (
            self._oldest_first[0][0] < now - self._kept_seconds or self._bytes > self._kept_bytes
        ):
            _, oldest = self._oldest_first.popleft()
            self._bytes -= len(self._answers.pop(oldest))
