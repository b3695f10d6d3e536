"""Closed-loop HTTP/1.1 load: each client sends its next request when its last one was answered.

The client is as thin as it can be, so that the server is what is busy. Invariant: an answer that is
no success ends the measurement with the answer's text; a figure never counts refused requests.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any


class LoadError(Exception):
    """The server refused a request, or hung up."""


@dataclass(frozen=True, slots=True)
class Load:
    """What one closed loop came to."""

    operations: int
    seconds: float
    latencies: list[float]
    """Seconds, one per operation, ascending."""
    answers: list[bytes] = field(default_factory=list[bytes])
    """The answers' bodies in order of arrival."""

    @property
    def per_second(self) -> float:
        """Operations per second of wall time."""
        return self.operations / self.seconds

    def percentile_ms(self, share: float) -> float:
        """The latency that `share` of the operations did not exceed."""
        place = min(len(self.latencies) - 1, int(len(self.latencies) * share))
        return 1e3 * self.latencies[place]


class Connection(asyncio.Protocol):
    """One keep-alive connection with at most one request under way."""

    def __init__(self) -> None:
        self._transport: Any = None
        self._answer: asyncio.Future[bytes] | None = None
        self._received = bytearray()

    @classmethod
    async def open(cls, url: str) -> Connection:
        """Connect to the server at `url`: `http://HOST:PORT`."""
        host, _, port = url.removeprefix("http://").partition(":")
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(cls, host, int(port))
        return connection

    def send(self, request: bytes) -> asyncio.Future[bytes]:
        """Send a whole request; the result is the body of its answer."""
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._answer

    def close(self) -> None:
        """Hang up."""
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(LoadError(f"the server hung up: {exc}"))

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        received = self._received
        received += data
        end = received.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(received[:end]).lower()
        at = head.find(b"content-length:")
        length = 0 if at < 0 else int(head[at + 15 :].split(b"\r\n", 1)[0])
        if len(received) < end + 4 + length:
            return
        body = bytes(received[end + 4 : end + 4 + length])
        received.clear()
        answer, self._answer = self._answer, None
        if answer is None or answer.done():
            return
        if head[9:10] == b"2":
            answer.set_result(body)
        else:
            answer.set_exception(LoadError(f"{head[:40]!r}: {body[:300]!r}"))


def request(method: str, path: str, body: bytes, headers: dict[str, str] | None = None) -> bytes:
    """A whole HTTP/1.1 request."""
    lines = [f"{method} {path} HTTP/1.1", "host: bench", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def closed_loop(url: str, requests: Sequence[bytes], clients: int) -> Load:
    """Send `requests` over `clients` connections, each as soon as one is free."""
    waiting = iter(requests)
    answers: list[bytes] = []

    async def work(connection: Connection, done: Callable[[float], None]) -> None:
        for one in waiting:
            started = time.perf_counter()
            answers.append(await connection.send(one))
            done(time.perf_counter() - started)

    load = await drive(url, [work] * min(clients, len(requests)))
    return Load(load.operations, load.seconds, load.latencies, answers)


Script = Callable[[Connection, Callable[[float], None]], Awaitable[None]]
"""What one client does with its connection; it reports the seconds of each operation."""


async def drive(url: str, scripts: Iterable[Script]) -> Load:
    """Run each script with a connection of its own, all at once.

    Raises:
        LoadError: a request was refused, or a connection was lost.
    """
    scripts = list(scripts)
    connections = [await Connection.open(url) for _ in scripts]
    latencies: list[float] = []
    started = time.perf_counter()
    try:
        await asyncio.gather(
            *(
                script(one, latencies.append)
                for script, one in zip(scripts, connections, strict=True)
            )
        )
        seconds = time.perf_counter() - started
    finally:
        for one in connections:
            one.close()
    return Load(len(latencies), seconds, sorted(latencies))
