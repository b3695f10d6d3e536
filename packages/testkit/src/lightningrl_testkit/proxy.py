"""A proxy that loses answers: the server has done its work, and the client never hears of it."""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType


class AnswerLosingProxy:
    """Passes requests on to a server on loopback, and hangs up instead of the first `losses` answers.

    `async with AnswerLosingProxy(port, losses=1) as url:`; an answer is lost after the server gave it.
    """

    def __init__(self, port: int, losses: int) -> None:
        self._port = port
        self.losses_left = losses
        """Answers that are still to be lost."""
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> str:
        """Begin to pass requests on; the URL to send them to."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Refuse new connections, and wait for the end of those that are open."""
        assert self._server is not None
        self._server.close()
        await asyncio.gather(*self._serving)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._port)
        requests = asyncio.create_task(_pass_on(reader, up_writer))
        with contextlib.suppress(ConnectionError):
            while answer := await up_reader.read(1 << 20):
                if self.losses_left:
                    self.losses_left -= 1
                    break
                writer.write(answer)
        writer.close()
        up_writer.close()
        await requests


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while request := await reader.read(1 << 20):
            writer.write(request)
    writer.close()
