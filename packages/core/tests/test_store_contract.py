"""Every shipped store passes the one contract."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from lightningrl.store.base import Store
from lightningrl.store.http import HttpStore
from lightningrl.store.postgres import PostgresStore
from lightningrl.store.sqlite import SqliteStore
from lightningrl_testkit.server import OneStoreAfterTheOther, ServerThread
from lightningrl_testkit.store import StoreContract


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


class TestPostgresStore(StoreContract):
    @pytest_asyncio.fixture
    async def store(self, postgres_url: str) -> AsyncIterator[Store]:
        store = PostgresStore.open(postgres_url)
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
