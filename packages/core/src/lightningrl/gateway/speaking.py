"""A stream whose answer takes long says so: proxies, read timeouts and watchdogs take silence for death.

Invariant: an answer that is whole within `stream_silence_seconds` goes out as any other, with its true status. After
that the headers are out, with status 200, and comments keep the connection alive; what the agent is then told
of its answer, or of an error, is one body, sent once the call is recorded.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from lightningrl.gateway.asgi import EVENT_STREAM, Answer, Send, send_answer
from lightningrl.gateway.limits import GatewayLimits

COMMENT = b": the answer is on its way\n\n"


class Speaker:
    """The way to one agent."""

    def __init__(self, send: Send, limits: GatewayLimits) -> None:
        self._send = send
        self._limits = limits
        self._timer: asyncio.TimerHandle | None = None
        self._speaking: asyncio.Task[None] | None = None
        self._begun = False
        self._error: Callable[[bytes], bytes] = bytes

    def expect(
        self, request_id: str, waiting: Callable[[], bytes], error: Callable[[bytes], bytes]
    ) -> None:
        """The agent asked for a stream: speak if its answer takes long. What was expected before stays.

        Args:
            request_id: of the call.
            waiting: gives what its clients take for a sign of life beside comments; may be empty.
            error: from an error's body to what the stream then says.
        """
        if self._timer is not None:
            return

        def begin() -> None:
            self._speaking = asyncio.create_task(self._speak(request_id, waiting()))

        self._error = error
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._limits.stream_silence_seconds, begin)

    async def _speak(self, request_id: str, waiting: bytes) -> None:
        headers = [
            (b"content-type", EVENT_STREAM),
            (b"cache-control", b"no-cache"),
            (b"x-request-id", request_id.encode()),
        ]
        self._begun = True
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        while True:
            part = {"type": "http.response.body", "body": COMMENT + waiting, "more_body": True}
            await self._send(part)
            await asyncio.sleep(self._limits.stream_comment_seconds)

    def stop(self) -> None:
        """Say nothing more by itself."""
        if self._timer is not None:
            self._timer.cancel()
        if self._speaking is not None:
            self._speaking.cancel()

    async def answer(self, answer: Answer | None) -> None:
        """Send the answer. `None`: nobody is left to be answered."""
        self.stop()
        if self._speaking is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await self._speaking
        if answer is None:
            return
        if not self._begun:
            await send_answer(self._send, answer)
            return
        body = answer.body if answer.status == 200 else self._error(answer.body)
        await self._send({"type": "http.response.body", "body": body})
