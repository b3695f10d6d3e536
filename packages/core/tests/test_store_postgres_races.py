"""What two processes do to one PostgreSQL store at once, interleaved by hand.

One of them is a transaction that a test holds open after its operation ran; the other is a store.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from typing import Any, TypeVar

import psycopg
import pytest
import pytest_asyncio

from lightningrl.store import ledger
from lightningrl.store.base import Retention, RolloutQuery
from lightningrl.store.postgres import PostgresStore
from lightningrl.store.postgres.session import BEGIN, PostgresSession, connect
from lightningrl.store.session import Session
from lightningrl_testkit.store_live import serve

T = TypeVar("T")


class SlowProcess:
    """Runs operations of the store and is slow to commit them."""

    def __init__(self, url: str) -> None:
        self._session = PostgresSession("slow", connect(url, "slow"))
        self._onlooker: psycopg.Connection[tuple[object, ...]] = psycopg.connect(
            url, autocommit=True
        )

    def begin(self, operation: Callable[[Session], T]) -> T:
        self._session.begin(BEGIN)
        return operation(self._session)

    async def commit_beside(self, work: Coroutine[Any, Any, T]) -> T:
        """Begin `work`, and commit when it waits for this process, or has ended without."""
        working = asyncio.ensure_future(work)
        while not (working.done() or self._is_waited_for()):  # noqa: ASYNC110  turns of the loop
            await asyncio.sleep(0)
        self._session.control("COMMIT")
        return await working

    def _is_waited_for(self) -> bool:
        waiting = "SELECT 1 FROM pg_stat_activity WHERE %s = ANY(pg_blocking_pids(pid))"
        pid = self._session.connection.info.backend_pid
        return self._onlooker.execute(waiting.encode(), [pid]).fetchone() is not None

    def close(self) -> None:
        self._session.connection.close()
        self._onlooker.close()


@pytest_asyncio.fixture
async def store(postgres_url: str) -> AsyncGenerator[PostgresStore]:
    store = PostgresStore.open(postgres_url)
    yield store
    await store.close()


@pytest.fixture
def slow(store: PostgresStore, postgres_url: str) -> Generator[SlowProcess]:
    slow = SlowProcess(postgres_url)
    yield slow
    slow.close()


class TestDeletion:
    async def test_what_is_just_being_given_is_not_retired(
        self, store: PostgresStore, slow: SlowProcess
    ) -> None:
        given, _ = await serve(store, "a"), await serve(store, "b")
        slow.begin(lambda session: ledger.give_live(session, "run", 1, [given]))
        retiring = store.retain(Retention(max_age_seconds=0.0))
        assert await slow.commit_beside(retiring) == 1
        assert await store.give_live("run", 1, []) == [given]
        assert [one.id for one in await store.rollouts(RolloutQuery())] == [given]
