"""What only the PostgreSQL store promises: several writers, notifications, outages, no pooler."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Generator
from itertools import product

import psycopg
import pytest
import pytest_asyncio

from lightningrl.errors import ConfigError, NotFound, StaleAttempt, StoreUnavailable
from lightningrl.schema import (
    ATTEMPT_MOVES,
    ROLLOUT_MOVES,
    AttemptId,
    AttemptState,
    Claim,
    Mode,
    RolloutState,
)
from lightningrl.store import open_store
from lightningrl.store.base import RolloutQuery
from lightningrl.store.postgres import PostgresStore
from lightningrl_testkit.records import call, group, log, reward

Row = tuple[object, ...]


@pytest_asyncio.fixture
async def stores(postgres_url: str) -> AsyncGenerator[tuple[PostgresStore, PostgresStore]]:
    """Two writers of one store, as two server processes have them."""
    one, other = PostgresStore.open(postgres_url), PostgresStore.open(postgres_url)
    yield one, other
    await one.close()
    await other.close()


@pytest.fixture
def sql(postgres_url: str) -> Generator[psycopg.Connection[Row]]:
    """A connection of somebody else's; each statement is its own transaction."""
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        yield connection


async def claimed(store: PostgresStore, count: int = 1, task: str = "task") -> list[Claim]:
    await store.enqueue(group(count, task=task))
    return await store.claim("worker", limit=count)


async def until(condition: Callable[[], bool]) -> None:
    """Let the others go on until `condition` holds, of which no event tells."""
    while not condition():  # noqa: ASYNC110  turns of the loop, not a time
        await asyncio.sleep(0)


class TestTables:
    async def test_the_state_tables_of_python_and_sql_are_the_same(
        self, stores: object, sql: psycopg.Connection[Row]
    ) -> None:
        for table, moves in (("rollout", ROLLOUT_MOVES), ("attempt", ATTEMPT_MOVES)):
            found = set(sql.execute(f"SELECT * FROM {table}_moves".encode()))
            assert found == {(old, new) for old, allowed in moves.items() for new in allowed}

    async def test_sql_allows_just_the_moves_of_the_table(
        self, stores: tuple[PostgresStore, PostgresStore], sql: psycopg.Connection[Row]
    ) -> None:
        await stores[0].enqueue(group(1))
        for old, new in product(RolloutState, RolloutState):
            sql.execute("BEGIN")
            way = {"queued": [], "running": ["running"], "cancelled": ["cancelled"]}
            for one in way.get(old, ["running", old]):
                move(sql, one)
            allowed = old is new or new in ROLLOUT_MOVES[old]
            refused = pytest.raises(psycopg.errors.CheckViolation, match="rollout_moves")
            with contextlib.nullcontext() if allowed else refused:
                move(sql, new)
            sql.execute("ROLLBACK")

    async def test_sql_refuses_to_change_or_delete_an_event(
        self, stores: tuple[PostgresStore, PostgresStore], sql: psycopg.Connection[Row]
    ) -> None:
        (claim,) = await claimed(stores[0])
        await stores[0].append([log(claim.attempt.id, "1")])
        for statement in ("UPDATE events SET kind = 'call'", "DELETE FROM events"):
            with pytest.raises(psycopg.errors.CheckViolation, match="append-only"):
                sql.execute(statement.encode())


def move(sql: psycopg.Connection[Row], state: str) -> None:
    ended = 1 if state in ("succeeded", "failed", "cancelled") else None
    sql.execute("UPDATE rollouts SET state = %s, ended_us = %s, ended_seq = NULL", (state, ended))


class TestSeveralWriters:
    async def test_one_rollout_is_never_handed_out_twice(
        self, stores: tuple[PostgresStore, PostgresStore]
    ) -> None:
        await stores[0].enqueue(group(200))

        async def work(place: int) -> list[AttemptId]:
            mine: list[AttemptId] = []
            while claims := await stores[place % 2].claim(f"worker-{place}", limit=3):
                mine += [claim.attempt.rollout_id for claim in claims]
            return mine

        got = [one for mine in await asyncio.gather(*map(work, range(8))) for one in mine]
        assert len(got) == len(set(got)) == 200

    async def test_a_reader_of_ends_sees_who_committed_late(
        self, stores: tuple[PostgresStore, PostgresStore], sql: psycopg.Connection[Row]
    ) -> None:
        first, second = await claimed(stores[0], 2)
        sql.execute("BEGIN")  # ends the first rollout, and is slow to commit
        for statement in (
            "UPDATE attempts SET state = 'succeeded', ended_us = 1 WHERE pk = 1",
            "UPDATE rollouts SET state = 'succeeded', ended_us = 1, complete = 1 WHERE pk = 1",
        ):
            sql.execute(statement.encode())
        await stores[0].finish(second.attempt.id, AttemptState.SUCCEEDED)
        (seen,) = await stores[1].ended("run")
        assert seen.rollout.id == second.rollout.id
        sql.execute("COMMIT")
        (late,) = await stores[1].ended("run", after=seen.cursor)
        assert late.rollout.id == first.rollout.id

    async def test_no_end_is_passed_over_while_both_end_rollouts(
        self, stores: tuple[PostgresStore, PostgresStore]
    ) -> None:
        claims = await claimed(stores[0], 120)

        async def end(place: int) -> None:
            for claim in claims[place::6]:
                await stores[place % 2].finish(claim.attempt.id, AttemptState.SUCCEEDED)

        async def read() -> list[str]:
            seen: list[str] = []
            cursor = 0
            while len(seen) < 120:
                for one in await stores[0].ended("run", after=cursor):
                    assert one.cursor > cursor
                    cursor = one.cursor
                    seen.append(one.rollout.id)
            return seen

        _, seen = await asyncio.gather(asyncio.gather(*map(end, range(6))), read())
        assert len(set(seen)) == 120

    async def test_nothing_is_appended_after_the_attempt_ended(
        self, stores: tuple[PostgresStore, PostgresStore]
    ) -> None:
        (claim,) = await claimed(stores[0])
        ident = claim.attempt.id
        accepted: list[str] = []

        async def append(place: int) -> None:
            for number in range(30):
                name = f"{place}-{number}"
                with contextlib.suppress(StaleAttempt):
                    await stores[place % 2].append([call(ident, name)])
                    accepted.append(name)

        async def finish() -> None:
            await until(lambda: len(accepted) > 10)
            await stores[1].finish(ident, AttemptState.SUCCEEDED)

        await asyncio.gather(finish(), *map(append, range(4)))
        (events,) = await stores[0].events([ident])
        assert sorted(one.id for one in events) == sorted(accepted)
        for place in range(4):  # each writer's own come in its own order
            mine = [one.id for one in events if one.id.startswith(f"{place}-")]
            assert mine == [f"{place}-{number}" for number in range(len(mine))]

    async def test_who_enqueues_what_another_is_just_enqueueing_finds_it(
        self, stores: tuple[PostgresStore, PostgresStore]
    ) -> None:
        counts = await asyncio.gather(*(store.enqueue(group(50)) for store in stores * 4))
        assert sum(counts) == 50

    async def test_of_two_takes_at_once_both_get_the_same(
        self, stores: tuple[PostgresStore, PostgresStore]
    ) -> None:
        claims = await claimed(stores[0], 2)
        for claim in claims:
            await stores[0].append([log(claim.attempt.id, "1")])
            await stores[0].finish(claim.attempt.id, AttemptState.SUCCEEDED)
        one, other = await asyncio.gather(*(store.take("run", 1) for store in stores))
        assert one == other

    async def test_transactions_in_each_other_s_way_both_succeed(
        self, stores: tuple[PostgresStore, PostgresStore]
    ) -> None:
        claims = await claimed(stores[0], 4)
        idents = [claim.attempt.id for claim in claims]
        for _ in range(10):
            lost = await asyncio.gather(
                *(stores[0].heartbeat("worker", idents) for _ in range(3)),
                *(stores[1].heartbeat("worker", idents[::-1]) for _ in range(3)),
            )
            assert lost == [[]] * 6

    async def test_one_operation_that_fails_undoes_only_itself(
        self, stores: tuple[PostgresStore, PostgresStore]
    ) -> None:
        (claim,) = await claimed(stores[0])
        good = [stores[0].append([log(claim.attempt.id, str(number))]) for number in range(5)]
        bad = stores[0].append([log(AttemptId("nobody"), "1")])
        results = await asyncio.gather(*good, bad, return_exceptions=True)
        assert [type(one).__name__ for one in results] == ["NoneType"] * 5 + ["NotFound"]
        (events,) = await stores[1].events([claim.attempt.id])
        assert len(events) == 5

    async def test_a_name_that_postgresql_can_t_keep_is_refused_and_stops_nobody_else(
        self, stores: tuple[PostgresStore, PostgresStore]
    ) -> None:
        store, _ = stores
        (claim,) = await claimed(store)
        results = await asyncio.gather(
            store.enqueue(group(task="a\0b")),
            store.enqueue(group(task="good")),
            store.append([reward(claim.attempt.id, 1.0, name="na\0me")]),
            store.append([log(claim.attempt.id, "1", "a message may hold \0")]),
            return_exceptions=True,
        )
        refused = [isinstance(one, ConfigError) and "NUL" in str(one) for one in results]
        assert (refused, results[1]) == ([True, False, True, False], 1)
        ((event,),) = await store.events([claim.attempt.id])
        assert event == log(claim.attempt.id, "1", "a message may hold \0")

    async def test_a_worker_that_holds_a_rollout_is_passed_over_not_waited_for(
        self, stores: tuple[PostgresStore, PostgresStore], sql: psycopg.Connection[Row]
    ) -> None:
        await stores[0].enqueue(group(2))
        sql.execute("BEGIN")
        sql.execute("SELECT 1 FROM rollouts ORDER BY pk LIMIT 1 FOR UPDATE")
        (claim,) = await stores[1].claim("worker", limit=2)
        sql.execute("ROLLBACK")
        (other,) = await stores[1].claim("worker", limit=2)
        assert claim.rollout.spec.member == 1
        assert other.rollout.spec.member == 0

    async def test_what_is_pinned_to_a_resource_waits_for_who_deletes_it(
        self, stores: tuple[PostgresStore, PostgresStore], sql: psycopg.Connection[Row]
    ) -> None:
        await stores[0].put_resource("run", "prompt", "be brief")
        sql.execute("BEGIN")
        sql.execute("DELETE FROM resources")
        enqueueing = asyncio.create_task(stores[0].enqueue(group(resources={"prompt": 1})))
        await until(lambda: locked(sql))
        sql.execute("COMMIT")
        with pytest.raises(NotFound, match="version 1"):
            await enqueueing
        assert await stores[0].rollouts(RolloutQuery()) == []

    async def test_a_run_is_deleted_with_what_is_just_pinned_to_its_resources(
        self, stores: tuple[PostgresStore, PostgresStore], sql: psycopg.Connection[Row]
    ) -> None:
        await stores[0].put_resource("run", "prompt", "be brief")
        await stores[0].enqueue(group())
        sql.execute("BEGIN")  # enqueues another one, and is slow to commit
        sql.execute("SELECT 1 FROM resources FOR KEY SHARE")
        columns = "run, mode, iteration, variant, task_id, group_id, member, created_us, spec"
        sql.execute(f"INSERT INTO rollouts (id, {columns}) SELECT 'other', {columns} FROM rollouts")
        deleting = asyncio.create_task(stores[0].delete_run("run"))
        await until(lambda: locked(sql))
        sql.execute("COMMIT")
        assert await deleting == 2


def locked(sql: psycopg.Connection[Row]) -> bool:
    """Whether somebody waits for what `sql` has locked."""
    question = "SELECT 1 FROM pg_stat_activity WHERE pg_backend_pid() = ANY (pg_blocking_pids(pid))"
    return sql.execute(question).fetchone() is not None


class TestNotifications:
    async def test_a_waiting_claim_is_woken_by_another_process(
        self, stores: tuple[PostgresStore, PostgresStore]
    ) -> None:
        # Unasked it looks after 5 seconds, which is longer than it waits.
        waiting = asyncio.ensure_future(stores[0].claim("worker", wait_seconds=4.0))
        await until(lambda: stores[0]._wakes._futures != {})
        await stores[1].enqueue(group(1))
        assert len(await waiting) == 1

    async def test_progress_is_woken_by_another_process(
        self, stores: tuple[PostgresStore, PostgresStore]
    ) -> None:
        (claim,) = await claimed(stores[0])
        waiting = asyncio.ensure_future(
            stores[0].progress("run", Mode.TRAIN, 1, seen=0, wait_seconds=4.0)
        )
        await until(lambda: stores[0]._wakes._futures != {})
        await stores[1].finish(claim.attempt.id, AttemptState.SUCCEEDED)
        assert (await waiting).ended == 1

    async def test_what_nobody_told_of_is_found_by_looking(
        self, stores: tuple[PostgresStore, PostgresStore], sql: psycopg.Connection[Row]
    ) -> None:
        (claim,) = await claimed(stores[0])
        waiting = asyncio.ensure_future(stores[0].claim("other", wait_seconds=60.0))
        await until(lambda: stores[0]._wakes._futures != {})
        sql.execute(
            "UPDATE attempts SET state = 'lost', ended_us = 1, failure_kind = 'lost', failure_message = ''"
        )
        sql.execute("UPDATE rollouts SET state = 'queued'")
        (again,) = await waiting
        assert again.rollout.id == claim.rollout.id

    async def test_a_listener_that_lost_its_connection_listens_again(
        self, stores: tuple[PostgresStore, PostgresStore], sql: psycopg.Connection[Row]
    ) -> None:
        listening = "SELECT pid FROM pg_stat_activity WHERE query = 'LISTEN lightningrl'"
        waiting = asyncio.ensure_future(stores[0].claim("worker", wait_seconds=60.0))
        await until(lambda: len(sql.execute(listening).fetchall()) == 2)
        before = set(sql.execute(listening))
        sql.execute(f"SELECT pg_terminate_backend(pid) FROM ({listening}) AS l".encode())
        await until(lambda: len(set(sql.execute(listening)) - before) == 2)
        await stores[1].enqueue(group(1))
        assert len(await waiting) == 1

    async def test_a_listener_that_finds_other_tables_says_so_and_tries_again(
        self,
        stores: tuple[PostgresStore, PostgresStore],
        sql: psycopg.Connection[Row],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        listening = "SELECT pid FROM pg_stat_activity WHERE query = 'LISTEN lightningrl'"
        await until(lambda: len(sql.execute(listening).fetchall()) == 2)
        sql.execute("ALTER TABLE meta RENAME TO hidden")
        sql.execute(f"SELECT pg_terminate_backend(pid) FROM ({listening}) AS l".encode())
        await until(lambda: caplog.text.count("not a LightningStore") == 2)
        sql.execute("ALTER TABLE hidden RENAME TO meta")
        await until(lambda: len(sql.execute(listening).fetchall()) == 2)


class TestOpening:
    def test_an_unreachable_server_is_named_without_the_password(self) -> None:
        with pytest.raises(StoreUnavailable, match="can't be reached") as caught:
            open_store("postgresql://me:secret-word@127.0.0.1:1/store")
        assert "postgresql://me@127.0.0.1:1/store" in str(caught.value)
        assert "secret-word" not in str(caught.value)

    def test_a_url_that_is_none_is_refused_without_the_password(self) -> None:
        with pytest.raises(ConfigError, match="no PostgreSQL URL") as caught:
            open_store("postgresql://me:secret-word@[/store")
        assert "secret-word" not in str(caught.value)

    async def test_a_read_only_store_refuses_to_write(self, postgres_url: str) -> None:
        with pytest.raises(ConfigError, match="not a LightningStore"):
            open_store(postgres_url, read_only=True)
        await open_store(postgres_url).close()
        store = open_store(postgres_url, read_only=True)
        assert await store.runs() == []
        with pytest.raises(StoreUnavailable, match="read-only"):
            await store.enqueue(group())
        await store.close()

    async def test_a_closed_store_is_unavailable(self, postgres_url: str) -> None:
        store = open_store(postgres_url)
        await store.close()
        await store.close()
        for calling in (store.enqueue(group()), store.runs()):
            with pytest.raises(StoreUnavailable, match="closed"):
                await calling

    async def test_of_many_processes_that_make_the_tables_at_once_all_succeed(
        self, postgres_url: str
    ) -> None:
        opening = [asyncio.to_thread(open_store, postgres_url) for _ in range(4)]
        opened = await asyncio.gather(*opening)
        assert len({await store.secret() for store in opened}) == 1
        for store in opened:
            await store.close()
