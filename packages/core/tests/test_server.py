"""The server's HTTP: keys, limits, health, waiting calls, and how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
import pytest_asyncio

from lightningrl.errors import ConfigError, StoreUnavailable
from lightningrl.gateway.asgi import Answer, Receive, Scope, Send, send_answer
from lightningrl.keys import OPEN, AccessKeys
from lightningrl.schema import RolloutState
from lightningrl.server.app import Application
from lightningrl.server.repeats import Repeats
from lightningrl.server.serve import _every, is_loopback, listen, serve
from lightningrl.server.store_api import StoreApi
from lightningrl.store.base import RolloutQuery
from lightningrl.store.compression import Compressor
from lightningrl.store.http import HttpStore
from lightningrl.store.sqlite import SqliteStore
from lightningrl_testkit.records import group
from lightningrl_testkit.server import ServerThread

KEYS = AccessKeys(admin=("the key", "the key before"), runner=("a runner's key",))
KEY = {"authorization": "Bearer the key"}


class EchoingGateway:
    """A gateway that answers with the path, so that a test sees what reached it."""

    async def start(self) -> None:
        """Nothing to start."""

    async def close(self) -> None:
        """Nothing to end."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_answer(send, Answer(200, scope["path"].encode()))


@dataclass
class Running:
    """A served store, seen from both sides."""

    server: ServerThread
    store: SqliteStore
    http: aiohttp.ClientSession

    async def post(
        self, path: str, body: bytes = b"\x80", headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        url = self.server.url + path
        async with self.http.post(url, data=body, headers=KEY | (headers or {})) as response:
            return response.status, await response.read()

    async def get(self, path: str) -> tuple[int, bytes]:
        async with self.http.get(self.server.url + path) as response:
            return response.status, await response.read()


@pytest_asyncio.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    store = SqliteStore.open(tmp_path / "store.db")
    app = Application(store, EchoingGateway(), keys=KEYS)
    with ServerThread(app) as server:
        async with aiohttp.ClientSession() as http:
            yield Running(server, store, http)
    await store.close()


def error_of(body: bytes) -> tuple[str, str]:
    error = msgspec.msgpack.decode(body)["error"]
    return error["code"], error["message"]


async def test_the_store_needs_the_key_and_nothing_else_does(running: Running) -> None:
    assert await running.post("/store/v1/runs") == (200, msgspec.msgpack.encode({"ok": []}))
    status, body = await running.post("/store/v1/runs", headers={"authorization": "Bearer no"})
    assert (status, error_of(body)[0]) == (401, "auth")
    assert await running.get("/healthz") == (200, b'{"ok":true}')
    assert await running.get("/rollouts/r/v1") == (200, b"/rollouts/r/v1")


async def test_it_is_ready_while_the_store_can_be_read(running: Running) -> None:
    assert await running.get("/readyz") == (200, b'{"ok":true,"reason":null}')
    await running.store.close()
    status, body = await running.get("/readyz")
    assert (status, b"closed" in body) == (503, True)


async def test_an_unknown_method_suggests_the_nearest(running: Running) -> None:
    status, body = await running.post("/store/v1/enque")
    assert (status, "'enqueue'" in error_of(body)[1]) == (404, True)


async def test_methods_are_called_by_post(running: Running) -> None:
    async with running.http.get(running.server.url + "/store/v1/runs", headers=KEY) as response:
        assert response.status == 405


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not msgpack",
        msgspec.msgpack.encode({}),
        msgspec.msgpack.encode({"run": 5}),
        msgspec.msgpack.encode({"run": "run", "color": "red"}),
    ],
)
async def test_arguments_that_do_not_fit_the_contract_are_refused(
    running: Running, body: bytes
) -> None:
    status, answer = await running.post("/store/v1/summary", body)
    assert (status, error_of(answer)[0]) == (400, "config")


async def test_what_is_no_zstd_is_refused(running: Running) -> None:
    zstd = {"content-encoding": "zstd"}
    status, answer = await running.post("/store/v1/runs", b"no zstd", zstd)
    assert (status, error_of(answer)[0]) == (400, "config")


async def test_errors_of_the_store_come_with_code_and_status(running: Running) -> None:
    body = msgspec.msgpack.encode({"attempt_id": "a-unknown"})
    status, answer = await running.post("/store/v1/attempt", body)
    assert (status, error_of(answer)[0]) == (404, "not_found")


class OnlyTheApi:
    """An app that is the store's API alone, with a body limit of 1000 bytes."""

    def __init__(self, store: SqliteStore) -> None:
        self._api = StoreApi(store, body_limit=1000)

    async def start(self) -> None:
        """Nothing to start."""

    async def stop(self) -> None:
        """Nothing to end."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._api(scope, receive, send)


async def test_bodies_over_the_limit_are_refused(tmp_path: Path) -> None:
    async def in_chunks() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"x" * 100

    bomb = Compressor().pack(bytes(100_000))
    assert len(bomb) < 1000
    store = SqliteStore.open(tmp_path / "store.db")
    with ServerThread(OnlyTheApi(store)) as server:
        url = server.url + "/store/v1/runs"
        async with aiohttp.ClientSession() as http:
            async with http.post(url, data=bytes(1001)) as declared:
                assert declared.status == 413
            async with http.post(url, data=in_chunks()) as chunked:
                assert chunked.status == 413
            async with http.post(url, data=bomb, headers={"content-encoding": "zstd"}) as packed:
                assert packed.status == 413
    await store.close()


async def waiting_claim(running: Running) -> asyncio.Task[tuple[int, bytes]]:
    """A claim that waits at the server for a minute."""
    body = msgspec.msgpack.encode({"worker": "worker", "wait_seconds": 60.0})
    claiming = asyncio.create_task(running.post("/store/v1/claim", body))
    while not await running.store.workers():
        continue
    return claiming


async def test_a_client_that_hung_up_while_waiting_gets_no_claim(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path / "store.db")
    body = msgspec.msgpack.encode({"worker": "worker", "wait_seconds": 3600.0})
    messages = [{"type": "http.request", "body": body}, {"type": "http.disconnect"}]

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    async def send(message: Any) -> None:
        raise AssertionError("nobody is left to be answered")

    scope = {"type": "http", "method": "POST", "path": "/store/v1/claim", "headers": []}
    await StoreApi(store)(scope, receive, send)
    await store.enqueue(group())
    assert len(await store.claim("another")) == 1
    await store.close()


async def test_a_server_that_ends_tells_the_waiting_to_ask_again(tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path / "store.db")
    app = Application(store, EchoingGateway(), keys=KEYS)
    async with aiohttp.ClientSession() as http:
        with ServerThread(app) as server:
            claiming = await waiting_claim(Running(server, store, http))
            server.begin_to_end()
            status, body = await claiming
        assert (status, error_of(body)[0]) == (503, "store_unavailable")
    await store.enqueue(group())
    (rollout,) = await store.rollouts(RolloutQuery())
    assert rollout.state is RolloutState.QUEUED
    await store.close()


async def test_the_same_request_is_answered_the_same(running: Running) -> None:
    await running.store.enqueue(group(2))
    body = msgspec.msgpack.encode({"worker": "worker"})
    first = await running.post("/store/v1/claim", body, {"x-lightningrl-request": "1"})
    again = await running.post("/store/v1/claim", body, {"x-lightningrl-request": "1"})
    other = await running.post("/store/v1/claim", body, {"x-lightningrl-request": "2"})
    assert first == again != other


async def test_a_request_repeated_while_it_waits_is_answered_once(running: Running) -> None:
    body = msgspec.msgpack.encode({"worker": "worker", "wait_seconds": 60.0})
    ident = {"x-lightningrl-request": "1"}
    both = [asyncio.create_task(running.post("/store/v1/claim", body, ident)) for _ in range(2)]
    while not await running.store.workers():
        continue
    over_http = HttpStore.connect(running.server.url, key="the key")
    await over_http.enqueue(group(2))
    first, second = await asyncio.gather(*both)
    assert first == second
    assert (await over_http.progress("run", group()[0].mode, 1)).running == 1
    await over_http.close()


async def test_answers_are_forgotten_after_a_while() -> None:
    done: list[int] = []

    async def work() -> bytes:
        done.append(len(done))
        return b"%d" % done[-1]

    kept, forgotten = Repeats(60.0), Repeats(-1.0)  # kept until one second ago: not at all
    assert [await kept.once(one, work) for one in ("a", "b", "a")] == [b"0", b"1", b"0"]
    assert [await forgotten.once(one, work) for one in ("a", "b", "a")] == [b"2", b"3", b"4"]


async def test_the_oldest_answers_go_when_there_are_too_many() -> None:
    done: list[str] = []

    async def ask(ident: str) -> bytes:
        async def work() -> bytes:
            done.append(ident)
            return b"12345"

        return await repeats.once(ident, work)

    repeats = Repeats(60.0, kept_bytes=10)  # two answers
    for ident in ("a", "b", "b", "c", "b", "a"):
        await ask(ident)
    assert done == ["a", "b", "c", "a"]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.1", "example.org", ""])
def test_without_a_key_only_this_machine_is_let_in(tmp_path: Path, host: str) -> None:
    assert not is_loopback(host)
    with pytest.raises(ConfigError, match="LIGHTNINGRL_ADMIN_KEY"):
        serve(tmp_path / "store.db", host=host)
    assert not list(tmp_path.iterdir())  # nothing was started


def test_loopback_addresses_are_known() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost"))


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with listen("127.0.0.1", 0, OPEN) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} .* another port"):
            serve(tmp_path / "store.db", port=port)


async def test_a_store_that_fails_is_unavailable_to_clients(running: Running) -> None:
    await running.store.close()
    over_http = HttpStore.connect(running.server.url, key="the key")
    with pytest.raises(StoreUnavailable, match="closed"):
        await over_http.enqueue(group())
    await over_http.close()


async def test_what_is_done_again_and_again_goes_on_after_any_failure(
    caplog: pytest.LogCaptureFixture,
) -> None:
    failures: list[Exception] = [StoreUnavailable("away"), AssertionError("broken")]
    done = asyncio.Event()

    async def work() -> None:
        if failures:
            raise failures.pop()
        done.set()

    async with _every(0.0, work, first_after=0.0):
        await done.wait()
    assert caplog.text.count("trying again") == 2
