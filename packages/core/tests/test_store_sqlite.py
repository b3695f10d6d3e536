"""What only the SQLite store promises: its file, its lock, its tables, its size."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import subprocess
import sys
from itertools import product
from pathlib import Path

import apsw
import pytest

from lightningrl.errors import ConfigError, StoreLocked, StoreUnavailable
from lightningrl.schema import (
    ATTEMPT_MOVES,
    ROLLOUT_MOVES,
    AttemptId,
    AttemptState,
    Failure,
    FailureKind,
    Mode,
    RolloutState,
)
from lightningrl.store import open_store
from lightningrl.store.base import RolloutQuery, Store
from lightningrl.store.deltas import common_prefix, common_suffix
from lightningrl.store.http import HttpStore
from lightningrl.store.sqlite import SqliteStore
from lightningrl.store.versions import SCHEMA_VERSION
from lightningrl_testkit.records import call, group, log, reward
from lightningrl_testkit.store_model import ManualClock


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


async def an_attempt(store: Store) -> AttemptId:
    await store.enqueue(group())
    (claim,) = await store.claim("worker")
    return claim.attempt.id


async def made(path: Path) -> None:
    """A store with one queued rollout."""
    store = SqliteStore.open(path)
    await store.enqueue(group())
    await store.close()


class TestDurability:
    async def test_what_was_taken_is_on_disk_when_it_is_returned(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What was written last before the latest sync is what a power cut leaves."""
        synced: list[tuple[int, bytes]] = []
        log_file = path.with_name("store.db-wal")

        def fsync(file: int) -> None:
            synced.append((os.fstat(file).st_ino, log_file.read_bytes()))

        store = SqliteStore.open(path)
        await store.enqueue(group(1))
        (claim,) = await store.claim("worker")
        await store.append([reward(claim.attempt.id, 1.0)])
        await store.finish(claim.attempt.id, AttemptState.SUCCEEDED)
        monkeypatch.setattr(os, "fsync", fsync)
        taken = await store.take("run", 1, min_group=1)
        assert synced == [(log_file.stat().st_ino, log_file.read_bytes())]
        left = path.with_name("left.db")
        left.with_name("left.db-wal").write_bytes(synced[0][1])
        left.write_bytes(path.read_bytes())
        again = SqliteStore.open(left)
        assert await again.take("run", 1, min_group=1) == taken
        await again.close()
        await store.close()


class TestPins:
    async def test_a_rollout_whose_resource_is_gone_fails_and_stops_nobody_else(
        self, path: Path
    ) -> None:
        store = SqliteStore.open(path)
        await store.put_resource("run", "prompt", "be brief")
        await store.enqueue(group(2, resources={"prompt": 1}, await_rewards=("user",)))
        await store.enqueue(group(task="free"))
        with contextlib.closing(apsw.Connection(str(path))) as connection:
            connection.execute("DELETE FROM resources")
        (claim,) = await store.claim("worker")
        assert claim.rollout.spec.task_id == "free"
        assert [one.claimed for one in await store.workers()] == [1]
        pinned = await store.wait(group_ids=[group(resources={"prompt": 1})[0].group_id])
        assert [one.state for one in pinned] == [RolloutState.FAILED] * 2
        attempts = await store.attempts([one.id for one in pinned])
        failures = [one.failure for one in attempts]
        told = "run 'run' has no version 1 of the resource 'prompt'; put it with `put_resource`"
        assert failures == [Failure(FailureKind.INFRASTRUCTURE, told)] * 2
        await store.close()


class TestTables:
    async def test_the_state_tables_of_python_and_sql_are_the_same(self, path: Path) -> None:
        await made(path)
        with sqlite3.connect(path) as connection:
            for table, moves in (("rollout", ROLLOUT_MOVES), ("attempt", ATTEMPT_MOVES)):
                found = set(connection.execute(f"SELECT * FROM {table}_moves"))
                assert found == {(old, new) for old, allowed in moves.items() for new in allowed}
        connection.close()

    async def test_sql_allows_just_the_moves_of_the_table(self, path: Path) -> None:
        await made(path)
        connection = apsw.Connection(str(path))
        for old, new in product(RolloutState, RolloutState):
            ended = new not in (RolloutState.QUEUED, RolloutState.RUNNING)
            values = (new, 1 if ended else None)
            connection.execute("BEGIN")
            put_into(connection, old)
            allowed = old is new or new in ROLLOUT_MOVES[old]
            refused = pytest.raises(apsw.ConstraintError, match="rollout_moves")
            with contextlib.nullcontext() if allowed else refused:
                connection.execute("UPDATE rollouts SET state=?, ended_us=?", values)
            connection.execute("ROLLBACK")
        connection.close()

    async def test_sql_refuses_to_change_or_delete_an_event(self, path: Path) -> None:
        store = SqliteStore.open(path)
        await store.append([log(await an_attempt(store), "1")])
        await store.close()
        connection = apsw.Connection(str(path))
        for statement in ("UPDATE events SET kind = 'call'", "DELETE FROM events"):
            with pytest.raises(apsw.ConstraintError, match="append-only"):
                connection.execute(statement)
        connection.close()


def put_into(connection: apsw.Connection, state: RolloutState) -> None:
    """Lead the only rollout to `state` along the table."""
    way = {
        RolloutState.QUEUED: [],
        RolloutState.RUNNING: ["running"],
        RolloutState.CANCELLED: ["cancelled"],
    }.get(state, ["running", state])
    for one in way:
        ended = 1 if one in ("succeeded", "failed", "cancelled") else None
        values = (one, ended)
        connection.execute("UPDATE rollouts SET state=?, ended_us=?", values)


class TestFile:
    async def test_everything_is_there_after_reopening(self, path: Path) -> None:
        store = SqliteStore.open(path)
        attempt = await an_attempt(store)
        await store.append([call(attempt, "1"), log(attempt, "2")])
        secret = await store.secret()
        await store.close()
        store = SqliteStore.open(path)
        assert await store.events([attempt]) == [[call(attempt, "1"), log(attempt, "2")]]
        assert await store.secret() == secret
        await store.close()

    async def test_another_schema_version_is_refused_naming_both(self, path: Path) -> None:
        await made(path)
        with sqlite3.connect(path) as connection:
            connection.execute("UPDATE meta SET value = 99 WHERE name = 'schema_version'")
        connection.close()
        with pytest.raises(ConfigError, match=rf"version 99.* version {SCHEMA_VERSION}"):
            SqliteStore.open(path)

    async def test_another_program_s_database_is_refused_and_not_changed(self, path: Path) -> None:
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE theirs (x)")
        connection.close()
        with pytest.raises(ConfigError, match="not a LightningStore"):
            SqliteStore.open(path)

    async def test_what_is_no_database_is_refused(self, path: Path) -> None:
        path.write_bytes(b"these are a few lines of text, and no database at all\n" * 100)
        with pytest.raises(StoreUnavailable, match="no SQLite file"):
            SqliteStore.open(path)

    async def test_a_missing_folder_is_named(self, path: Path) -> None:
        with pytest.raises(StoreUnavailable, match="nowhere"):
            SqliteStore.open(path / "nowhere" / "store.db")

    async def test_a_damaged_file_is_unavailable(self, path: Path) -> None:
        store = SqliteStore.open(path)
        await store.enqueue(group(500))
        await store.close()
        content = path.read_bytes()
        # The first page holds the schema, which opening reads; everything after it is lost.
        path.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
        with pytest.raises(StoreUnavailable, match="damaged"):
            await rollouts_in(path)

    async def test_a_closed_store_is_unavailable(self, path: Path) -> None:
        store = SqliteStore.open(path)
        await store.close()
        await store.close()
        for calling in (store.enqueue(group()), store.runs()):
            with pytest.raises(StoreUnavailable, match="closed"):
                await calling

    async def test_what_was_submitted_before_closing_is_written(self, path: Path) -> None:
        store = SqliteStore.open(path)
        enqueueing = [
            asyncio.ensure_future(store.enqueue(group(task=str(task)))) for task in range(20)
        ]
        await asyncio.sleep(0)
        await store.close()
        assert await asyncio.gather(*enqueueing) == [1] * 20
        assert await rollouts_in(path) == 20


async def rollouts_in(path: Path) -> int:
    store = SqliteStore.open(path, read_only=True)
    try:
        return len(await store.rollouts(RolloutQuery()))
    finally:
        await store.close()


class TestOneWriter:
    async def test_a_second_writer_is_refused_naming_the_first(self, path: Path) -> None:
        store = SqliteStore.open(path)
        with pytest.raises(StoreLocked, match=f"process {os.getpid()}"):
            SqliteStore.open(path)
        store.announce("http://127.0.0.1:4711")
        with pytest.raises(StoreLocked, match=r"use http://127\.0\.0\.1:4711 instead"):
            SqliteStore.open(path)
        await store.close()
        await SqliteStore.open(path).close()

    async def test_a_read_only_store_reads_what_was_acknowledged(self, path: Path) -> None:
        writer = SqliteStore.open(path)
        reader = SqliteStore.open(path, read_only=True)
        for number in range(1, 6):
            await writer.enqueue(group(task=str(number)))
            assert len(await reader.rollouts(RolloutQuery())) == number
        await reader.close()
        await writer.close()

    async def test_a_read_only_store_refuses_to_write(self, path: Path) -> None:
        await made(path)
        reader = SqliteStore.open(path, read_only=True)
        with pytest.raises(StoreUnavailable, match="read-only"):
            await reader.enqueue(group())
        await reader.close()

    async def test_a_read_only_store_needs_a_store(self, path: Path) -> None:
        with pytest.raises(StoreUnavailable, match="can't be opened"):
            SqliteStore.open(path, read_only=True)

    async def test_a_read_only_store_sees_progress_of_another(self, path: Path) -> None:
        writer = SqliteStore.open(path)
        await writer.enqueue(group())
        reader = SqliteStore.open(path, read_only=True)
        waiting = asyncio.ensure_future(
            reader.progress("run", Mode.TRAIN, 1, seen=0, wait_seconds=60.0)
        )
        await writer.cancel([group()[0].id])
        assert (await waiting).cancelled == 1
        await reader.close()
        await writer.close()


class TestProgress:
    async def test_ends_in_between_are_gathered_and_the_last_one_is_told_at_once(
        self, path: Path
    ) -> None:
        store = SqliteStore.open(path, gather_seconds=3600.0)
        await store.enqueue(group(3))
        await asyncio.gather(*(store.runs() for _ in range(20)))  # each reader has its connection
        waiting = asyncio.ensure_future(
            store.progress("run", Mode.TRAIN, 1, seen=0, wait_seconds=3600.0)
        )
        for _ in range(20):  # until it has surely looked once
            await store.runs()
        for one in group(3):
            await store.cancel([one.id])
        assert (await waiting).cancelled == 3
        await store.close()

    async def test_a_wait_that_is_over_tells_what_was_gathered(self, path: Path) -> None:
        store = SqliteStore.open(path, gather_seconds=3600.0)
        await store.enqueue(group(2))
        waiting = asyncio.ensure_future(
            store.progress("run", Mode.TRAIN, 1, seen=0, wait_seconds=0.5)
        )
        await store.cancel([group()[0].id])
        assert (await waiting).cancelled == 1
        await store.close()


class TestClaimsThatAreCancelled:
    async def test_cancelled_while_it_waits_it_claims_nothing(self, path: Path) -> None:
        store = SqliteStore.open(path)
        waiting = asyncio.ensure_future(store.claim("worker", wait_seconds=60.0))
        while not await store.workers():
            continue
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await store.enqueue(group())
        assert len(await store.claim("other")) == 1
        await store.close()

    async def test_cancelled_while_it_is_written_it_returns_the_claim(self, path: Path) -> None:
        store = SqliteStore.open(path)
        await store.enqueue(group())
        claiming = asyncio.ensure_future(store.claim("worker"))
        await asyncio.sleep(0)  # now it has handed its claim to the writer
        await asyncio.sleep(0)
        claiming.cancel()
        assert len(await claiming) == 1
        await store.close()


class TestSize:
    @pytest.mark.parametrize("restarted", [False, True])
    async def test_a_conversation_costs_what_it_adds(self, path: Path, restarted: bool) -> None:
        # 40 turns of 200 random tokens and 1 kB of random text: sent in full, the prompts alone
        # are 200 * 4 * (1 + 2 + ... + 40) = 656 kB and the requests 1 kB * 820 = 820 kB.
        # New in each turn: 200 ids and log-probs (1.6 kB), 1 kB of text; in all some 110 kB.
        store = SqliteStore.open(path)
        attempt = await an_attempt(store)
        prompt: list[int] = []
        messages: list[bytes] = []
        for turn in range(40):
            answer = [int.from_bytes(os.urandom(2), "little") for _ in range(200)]
            messages.append(b'{"content":"%s"}' % os.urandom(500).hex().encode())
            request = b'{"messages":[%s],"tools":[]}' % b",".join(messages)
            event = call(attempt, str(turn), prompt=prompt, answer=answer, request=request)
            await store.append([event])
            prompt = prompt + answer
            if restarted and turn == 20:
                await store.close()
                store = SqliteStore.open(path)
        (events,) = await store.events([attempt])
        assert events[-1] == event
        await store.close()
        assert path.stat().st_size < 400_000

    def test_common_beginnings_and_ends(self) -> None:
        words = [b"", b"a", b"ab", b"abab", b"abcab", b"b"]
        for one, other in product(words, words):
            length = common_prefix(one, other)
            assert one[:length] == other[:length]
            assert one[length : length + 1] != other[length : length + 1] or length == len(one)
            end = common_suffix(one, other, 2)
            assert one[len(one) - end :] == other[len(other) - end :]
            assert end <= 2
        assert common_suffix(b"xab", b"yab", 2) == 2
        assert common_suffix(b"xab", b"yab", 1) == 1


FULL_DISK = """
import asyncio, random, resource, sys
from lightningrl.errors import StoreUnavailable
from lightningrl.store.sqlite import SqliteStore
from lightningrl_testkit.records import call, group

def turns(attempt):
    number, prompt, noise = 0, [], random.Random(0)
    while True:
        prompt = prompt + [noise.randrange(1 << 31) for _ in range(500)]
        yield call(attempt, str(number), prompt=prompt)
        number += 1

async def main():
    store = SqliteStore.open(sys.argv[1])
    await store.enqueue(group())
    (claim,) = await store.claim("worker")
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
    conversation = turns(claim.attempt.id)
    acknowledged = []
    try:
        while True:
            event = next(conversation)
            await store.append([event])
            acknowledged.append(event)
    except StoreUnavailable as error:
        print(error)
    assert acknowledged and await store.events([claim.attempt.id]) == [acknowledged]
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    later = [event, next(conversation), next(conversation)]
    for event in later:
        await store.append([event])
    assert await store.events([claim.attempt.id]) == [acknowledged + later]
    await store.close()

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on the size of files")
def test_where_no_more_fits_writes_fail_and_go_on_when_there_is_room(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert str(path) in done.stdout
    assert "try again" in done.stdout


class TestOpenStore:
    async def test_paths_and_sqlite_urls_open_the_file(self, path: Path) -> None:
        for url in (path, str(path), f"sqlite:{path}"):
            store = open_store(url)
            assert isinstance(store, SqliteStore)
            assert store.path == path
            await store.close()

    async def test_http_urls_connect(self) -> None:
        store = open_store("http://127.0.0.1:1/", key="key")
        assert isinstance(store, HttpStore)
        assert store.url == "http://127.0.0.1:1"
        await store.close()

    def test_other_schemes_are_refused_naming_the_valid_ones(self) -> None:
        with pytest.raises(ConfigError, match=r"'redis'.*sqlite:PATH.*http"):
            open_store("redis://localhost")

    def test_arguments_that_do_not_go_with_the_store_are_refused(self, path: Path) -> None:
        with pytest.raises(ConfigError, match="no key"):
            open_store(path, key="key")
        with pytest.raises(ConfigError, match="read_only"):
            open_store("http://127.0.0.1:1", read_only=True)


async def test_time_in_which_nothing_could_be_written_costs_no_lease(path: Path) -> None:
    clock = ManualClock()
    store = SqliteStore.open(path, clock=clock)
    await store.enqueue(group(2))
    await store.claim("worker", lease_seconds=2.0)
    assert await store.expire_regularly() == 1  # 30 seconds from now
    await store.claim("worker", lease_seconds=2.0)
    ended: list[tuple[float, int]] = []
    # The server calls it every second, and for the minute before 61 could not.
    for at in (1.0, 61.0, *range(62, 93)):
        clock.seconds = at
        if count := await store.expire():
            ended.append((at, count))
    await store.close()
    # Both leases were extended at 61, by 30 seconds: a worker had time to renew them, and did not.
    assert ended == [(91, 2)]
