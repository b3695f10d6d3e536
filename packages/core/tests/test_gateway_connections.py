"""Connections to engines: one request at a time, whole answers only, nothing used that is in doubt."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvloop

from lightningrl.gateway.connections import Broken, Connections

HELLO = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"
Script = Callable[["Engine", asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Engine:
    """A server that does on each connection what its script says."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.url = ""
        self.connections = 0
        self.requests: list[bytes] = []
        self.closed = asyncio.Queue[int]()
        """The number of each connection whose client closed it."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        number = self.connections
        try:
            await self._script(self, reader, writer)
            await reader.read()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.closed.put_nowait(number)
            writer.close()

    async def request(self, reader: asyncio.StreamReader) -> bytes:
        head = await reader.readuntil(b"\r\n\r\n")
        size = next(
            int(line[16:]) for line in head.split(b"\r\n") if line.startswith(b"content-length: ")
        )
        self.requests.append(head + await reader.readexactly(size))
        return self.requests[-1]


@asynccontextmanager
async def engine(script: Script):
    one = Engine(script)
    server = await asyncio.start_server(one.serve, "127.0.0.1", 0)
    one.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield one
    finally:
        server.close()


def pool(**changed: float) -> Connections:
    return Connections(
        **({"connect_seconds": 5.0, "answer_seconds": 5.0, "idle_seconds": 5.0} | changed)
    )


def answers(*parts: bytes, close: bool = False) -> Script:
    """Answers each request by `parts`, each sent for itself."""

    async def script(
        one: Engine, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while True:
            await one.request(reader)
            for part in parts:
                writer.write(part)
                await writer.drain()
            if close:
                writer.write_eof()
                return

    return script


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Awaitable[None]], None]:
    """Runs a coroutine on either loop: their transports are of different classes."""

    def run(work: Any) -> None:
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(work)

    return run


def test_a_connection_is_used_again_when_its_answer_is_whole(run: Callable[..., None]) -> None:
    async def work() -> None:
        async with engine(answers(HELLO)) as one:
            connections = pool()
            for body in (b"1", b"22"):
                assert await connections.post(f"{one.url}/v1/x?y=1", body, {"a": "b"}) == (
                    200,
                    b"hello",
                )
            both = (connections.post(one.url, b"", {}) for _ in range(2))
            assert await asyncio.gather(*both) == [(200, b"hello")] * 2
            assert one.connections == 2  # the second only while two calls were under way
            host = one.url.removeprefix("http://").encode()
            assert one.requests[1] == (
                b"POST /v1/x?y=1 HTTP/1.1\r\nhost: "
                + host
                + b"\r\ncontent-length: 2\r\na: b\r\n\r\n22"
            )
            assert one.requests[2].startswith(b"POST / HTTP/1.1\r\n")
            connections.close()
            assert {await one.closed.get(), await one.closed.get()} == {1, 2}

    run(work())


@pytest.mark.parametrize(
    ("parts", "close"),
    [
        ((b"HTTP/1.1 200 OK\r\ncontent-", b"length: 5\r\n\r\nhe", b"llo"), False),
        (
            (
                b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhe\r\n",
                b"3\r\nllo\r\n0\r\n\r\n",
            ),
            False,
        ),
        ((b"HTTP/1.1 103 Early Hints\r\n\r\n", HELLO), False),
        ((b"HTTP/1.1 200 OK\r\n\r\nhel", b"lo"), True),
    ],
    ids=["in pieces", "chunked", "after hints", "until the end"],
)
def test_an_answer_is_read_to_its_end(
    run: Callable[..., None], parts: tuple[bytes, ...], close: bool
) -> None:
    async def work() -> None:
        async with engine(answers(*parts, close=close)) as one:
            connections = pool()
            for _ in range(2):
                assert await connections.post(one.url, b"", {}) == (200, b"hello")
            assert one.connections == (2 if close else 1)
            connections.close()

    run(work())


@pytest.mark.parametrize(
    "parts",
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhello",),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhe\r\n",),
        (b"HTTP/1.1 200",),
        (b"",),
        (b"this is no HTTP\r\n\r\n",),
    ],
)
def test_half_an_answer_is_none(run: Callable[..., None], parts: tuple[bytes, ...]) -> None:
    async def work() -> None:
        async with engine(answers(*parts, close=True)) as one:
            connections = pool()
            with pytest.raises(Broken):
                await connections.post(one.url, b"", {})
            connections.close()

    run(work())


def test_a_request_that_is_given_up_closes_its_connection(run: Callable[..., None]) -> None:
    async def silent(
        one: Engine, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await one.request(reader)
        arrived.set()

    async def work() -> None:
        async with engine(silent) as one:
            with pytest.raises(TimeoutError):
                await pool(answer_seconds=0.01).post(one.url, b"", {})
            assert await one.closed.get() == 1
            arrived.clear()
            connections = pool()
            asking = asyncio.ensure_future(connections.post(one.url, b"", {}))
            await arrived.wait()
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            assert await one.closed.get() == 2
            arrived.clear()
            asking = asyncio.ensure_future(connections.post(one.url, b"", {}))
            await arrived.wait()
            connections.close()
            with pytest.raises(Broken):
                await asking

    arrived = asyncio.Event()
    run(work())


def test_a_connection_that_says_more_than_it_was_asked_is_not_used_again(
    run: Callable[..., None],
) -> None:
    async def work() -> None:
        async with engine(answers(HELLO + HELLO)) as one:
            connections = pool()
            for number in (1, 2):
                assert await connections.post(one.url, b"", {}) == (200, b"hello")
                assert await one.closed.get() == number
            connections.close()

    run(work())


def test_an_idle_connection_is_closed(run: Callable[..., None]) -> None:
    async def work() -> None:
        async with engine(answers(HELLO)) as one:
            connections = pool(idle_seconds=0.01)
            await connections.post(one.url, b"", {})
            assert await one.closed.get() == 1
            assert await connections.post(one.url, b"", {}) == (200, b"hello")
            assert one.connections == 2
            connections.close()

    run(work())


def test_what_cannot_be_connected_to_is_broken(run: Callable[..., None]) -> None:
    async def work() -> None:
        async with engine(answers(HELLO)) as one:
            with pytest.raises(Broken, match="no connection"):
                await pool(connect_seconds=0.3).post(
                    one.url.replace("http", "https"), b"", {}
                )  # no TLS there: the server waits for a request
        with pytest.raises(Broken, match="no connection"):
            await pool().post("http://127.0.0.1:1/v1", b"", {})  # a port that nobody may use

    run(work())


@pytest.mark.parametrize("url", ["ftp://host/v1", "host/v1", "http:///v1", "http://host/\r\nx: y"])
def test_what_is_no_url_is_refused(run: Callable[..., None], url: str) -> None:
    async def work() -> None:
        with pytest.raises(ValueError, match=r"URL|line break"):
            await pool().post(url, b"", {})

    run(work())


def test_a_header_cannot_smuggle_another(run: Callable[..., None]) -> None:
    async def work() -> None:
        with pytest.raises(ValueError, match="line break"):
            await pool().post("http://127.0.0.1:1", b"", {"a": "b\r\nc: d"})

    run(work())
