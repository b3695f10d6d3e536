"""Keep-alive HTTP/1.1 connections to engines, as many as there are calls under way.

The gateway asks little of a client, a request and its whole answer, and asks it for every call of every
agent: a general client would be the most expensive part of a call (docs/decisions/0008).

Invariants: a connection carries one request at a time; one whose answer was not read to its end is
closed, never used again; a request that is cancelled closes its connection, so that the engine stops.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from typing import NamedTuple, cast
from urllib.parse import urlsplit

import httptools

_DEFAULT_PORTS = {"http": 80, "https": 443}


class Broken(ConnectionError):
    """The engine could not be connected to, or broke off before its answer was whole."""


class Target(NamedTuple):
    """Where a request goes."""

    host: str
    port: int
    tls: bool

    @property
    def authority(self) -> str:
        """The `host` header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return (
            host
            if self.port == _DEFAULT_PORTS["https" if self.tls else "http"]
            else f"{host}:{self.port}"
        )


class Connections:
    """A pool without a limit: limits are set where calls are let in.

    An idle connection is used again, the latest first, unless it has been idle for `idle_seconds`.
    """

    def __init__(
        self, *, connect_seconds: float, answer_seconds: float, idle_seconds: float
    ) -> None:
        """Prepare a pool; nothing is opened before the first `post`.

        Args:
            connect_seconds: Longest time to connect.
            answer_seconds: Longest time from sending a request to the end of its answer.
            idle_seconds: How long an unused connection is kept; less than engines keep theirs.
        """
        self._connect_seconds = connect_seconds
        self._answer_seconds = answer_seconds
        self._idle_seconds = idle_seconds
        self._idle: dict[Target, list[_Connection]] = {}
        self._open: set[_Connection] = set()
        self._places: dict[str, tuple[Target, str]] = {}
        self._tls: ssl.SSLContext | None = None
        self._sweep: asyncio.TimerHandle | None = None

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes]:
        """Send `body` and wait for the whole answer; return its status and body.

        Redirects are not followed and nothing is sent again.

        Args:
            url: `http` or `https`; userinfo and fragment are not sent.
            body: What is sent, as it is.
            headers: Sent beside `host` and `content-length`.

        Raises:
            ValueError: `url` is none, or a header can't be sent.
            Broken: there was no connection, or the answer broke off.
            TimeoutError: there was no whole answer within `answer_seconds`.
        """
        return await self._ask(url, "POST", headers, body)

    async def get(self, url: str, headers: Mapping[str, str]) -> tuple[int, bytes]:
        """Ask for `url` and wait for the whole answer; see `post`."""
        return await self._ask(url, "GET", headers, b"")

    async def _ask(
        self, url: str, method: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, bytes]:
        target, line = self._place(url)
        request = _head(method, line, headers, len(body)) + body
        connection = self._unused(target) or await self._connect(target)
        status, answer = await connection.ask(request, self._answer_seconds)
        if connection.reusable:
            self._put_back(target, connection)
        return status, answer

    def close(self) -> None:
        """Close all connections; requests under way end as `Broken`."""
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        self._idle.clear()
        for connection in list(self._open):
            connection.close()

    def _place(self, url: str) -> tuple[Target, str]:
        found = self._places.get(url)
        if found is None:
            found = self._places[url] = _parse(url)
        return found

    def _unused(self, target: Target) -> _Connection | None:
        idle = self._idle.get(target)
        oldest = asyncio.get_running_loop().time() - self._idle_seconds
        while idle:
            connection = idle.pop()
            if connection.reusable and connection.idle_since > oldest:
                return connection
            connection.close()
        return None

    def _put_back(self, target: Target, connection: _Connection) -> None:
        self._idle.setdefault(target, []).append(connection)
        if self._sweep is None:
            loop = asyncio.get_running_loop()
            self._sweep = loop.call_later(self._idle_seconds, self._close_idle)

    def _close_idle(self) -> None:
        """Close what nobody used for a while; the next sweep is due when something is left."""
        self._sweep = None
        loop = asyncio.get_running_loop()
        oldest = loop.time() - self._idle_seconds
        for target, idle in list(self._idle.items()):
            kept: list[_Connection] = []
            for connection in idle:
                if connection.reusable and connection.idle_since > oldest:
                    kept.append(connection)
                else:
                    connection.close()
            if kept:
                self._idle[target] = kept
            else:
                del self._idle[target]
        if self._idle:
            self._sweep = loop.call_later(self._idle_seconds, self._close_idle)

    async def _connect(self, target: Target) -> _Connection:
        loop = asyncio.get_running_loop()
        if target.tls and self._tls is None:
            self._tls = ssl.create_default_context()
        try:
            async with asyncio.timeout(self._connect_seconds):
                _, connection = await loop.create_connection(
                    lambda: _Connection(self._open),
                    target.host,
                    target.port,
                    ssl=self._tls if target.tls else None,
                )
        except TimeoutError as error:
            raise Broken(f"no connection within {self._connect_seconds:g} s") from error
        except OSError as error:  # ssl.SSLError is one
            raise Broken(f"no connection: {error}") from error
        return connection


class _Connection(asyncio.Protocol):
    """One connection; httptools calls its `on_*` methods."""

    def __init__(self, connections: set[_Connection]) -> None:
        self.idle_since = 0.0
        """The loop's time when the last answer was whole."""
        self._connections = connections
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._parts: list[bytes] = []
        self._ends_with_connection = True
        self._in_body = False

    @property
    def reusable(self) -> bool:
        """Whether another request may be sent."""
        return self._transport is not None and not self._transport.is_closing()

    async def ask(self, request: bytes, seconds: float) -> tuple[int, bytes]:
        """Send a request and wait for its whole answer."""
        if self._transport is None or self._transport.is_closing():
            raise Broken("the connection was closed before the request was sent")
        loop = asyncio.get_running_loop()
        self._parser = httptools.HttpResponseParser(self)
        answer = self._answer = loop.create_future()
        deadline = loop.call_later(seconds, self._fail, TimeoutError())
        self._transport.write(request)
        try:
            return await answer
        finally:
            deadline.cancel()
            if not answer.done() or answer.cancelled() or answer.exception() is not None:
                self.close()

    def close(self) -> None:
        """Close the connection; a request under way ends as `Broken`."""
        if self._transport is not None:
            self._transport.close()

    # -- asyncio ---------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is open."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass of it
        self._connections.add(self)

    def data_received(self, data: bytes) -> None:
        """A piece of the answer."""
        if self._parser is None or self._answer is None:  # nobody asked
            self.close()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(Broken(f"no HTTP answer: {error}"))
            self.close()

    def eof_received(self) -> None:
        """The engine has sent all that it will."""
        if self._in_body and self._ends_with_connection:
            self._finish()
        self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._connections.discard(self)
        self._transport = None
        self._fail(Broken(f"the connection broke: {exc}" if exc else "the connection was closed"))

    # -- httptools -------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """An answer begins."""
        if self._answer is None:  # nobody asked
            self.close()
        self._parts = []
        self._ends_with_connection = True
        self._in_body = False

    def on_header(self, name: bytes, value: bytes) -> None:  # noqa: ARG002 - the callback's form
        """A header of the answer."""
        if name.lower() in (b"content-length", b"transfer-encoding"):
            self._ends_with_connection = False

    def on_headers_complete(self) -> None:
        """The body begins."""
        self._in_body = True

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self._parts.append(body)

    def on_message_complete(self) -> None:
        """The answer is whole."""
        if self._parser is not None and self._parser.get_status_code() >= 200:  # else: more follows
            self._finish()

    def _finish(self) -> None:
        parser, answer = self._parser, self._answer
        self._parser = self._answer = None
        self.idle_since = asyncio.get_running_loop().time()
        if parser is None or answer is None:
            return
        if not parser.should_keep_alive() or self._ends_with_connection:
            self.close()
        if not answer.done():
            answer.set_result((parser.get_status_code(), b"".join(self._parts)))
        self._parts = []

    def _fail(self, error: Exception) -> None:
        answer, self._answer = self._answer, None
        if answer is not None and not answer.done():
            answer.set_exception(error)


def _parse(url: str) -> tuple[Target, str]:
    """Where a URL leads, and what a request there begins with after its method."""
    parts = urlsplit(url)
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname:
        raise ValueError(f"{url!r} is no http or https URL")
    _check_sendable(url)
    port = parts.port or _DEFAULT_PORTS[parts.scheme]
    path = parts.path or "/"
    if parts.query:
        path += f"?{parts.query}"
    target = Target(parts.hostname, port, parts.scheme == "https")
    return target, f"{path} HTTP/1.1\r\nhost: {target.authority}"


def _head(method: str, line: str, headers: Mapping[str, str], size: int) -> bytes:
    """The head of a request; `line` is what `_parse` made of its URL."""
    told = "".join([f"{name}: {value}\n" for name, value in headers.items()])
    _check_sendable(told, breaks=len(headers))
    told = told.replace("\n", "\r\n")
    return f"{method} {line}\r\ncontent-length: {size}\r\n{told}\r\n".encode("latin-1")


def _check_sendable(text: str, *, breaks: int = 0) -> None:
    """Refuse what would be read as more than the `breaks` lines that it is meant to be."""
    if "\r" in text or "\0" in text or text.count("\n") != breaks:
        raise ValueError(f"{text!r} holds a line break, which HTTP can't carry")
