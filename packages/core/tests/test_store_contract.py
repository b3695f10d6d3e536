"""Every shipped store passes the one contract."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from lightningrl.gateway.asgi import Receive, Scope, Send
from lightningrl.server.store_api import StoreApi
from lightningrl.store.base import Store
from lightningrl.store.http import HttpStore
from lightningrl.store.sqlite import SqliteStore
from lightningrl_testkit.server import ServerThread
from lightningrl_testkit.store import StoreContract


class OneStoreAfterTheOther:
    """An app that is given a new store for each test, so that all share one server."""

    def __init__(self) -> None:
        self._api: StoreApi | None = None

    async def start(self) -> None:
        """Nothing to start."""

    async def stop(self) -> None:
        """Nothing to stop."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert self._api is not None
        await self._api(scope, receive, send)

    async def open(self, path: Path) -> SqliteStore:
        store = SqliteStore.open(path)
        self._api = StoreApi(store, None)
        return store


@pytest.fixture(scope="module")
def app() -> OneStoreAfterTheOther:
    return OneStoreAfterTheOther()


@pytest.fixture(scope="module")
def server(app: OneStoreAfterTheOther) -> Iterator[ServerThread]:
    with ServerThread(app) as server:
        yield server


class TestSqliteStore(StoreContract):
    @pytest_asyncio.fixture
    async def store(self, tmp_path: Path) -> AsyncIterator[Store]:
        store = SqliteStore.open(tmp_path / "store.db")
        yield store
        await store.close()


class TestHttpStore(StoreContract):
    @pytest_asyncio.fixture
    async def store(
        self, tmp_path: Path, app: OneStoreAfterTheOther, server: ServerThread
    ) -> AsyncIterator[Store]:
        served = await server.there(app.open(tmp_path / "store.db"))
        store = HttpStore.connect(server.url)
        yield store
        await store.close()
        await server.there(served.close())
