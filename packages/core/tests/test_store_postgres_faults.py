"""PostgreSQL killed, stopped and cut off: nothing acknowledged is lost, and nothing is written twice."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Generator, Iterator
from enum import Enum

import psycopg
import pytest

from lightningrl.errors import ConfigError, StoreUnavailable
from lightningrl.schema import AttemptId, AttemptState
from lightningrl.store.base import RolloutQuery
from lightningrl.store.databases import check_database
from lightningrl.store.postgres import PostgresStore
from lightningrl_testkit.ports import held_port
from lightningrl_testkit.postgres import PostgresServer, running_postgres
from lightningrl_testkit.records import call, group, log

pytestmark = pytest.mark.usefixtures("forked")

RUNS = int(os.environ.get("LIGHTNINGRL_FAULT_RUNS", "1"))
WRITERS = 6
EVENTS = 40


@pytest.fixture(scope="module")
def fragile() -> Iterator[PostgresServer]:
    """A server of this file's own, which is killed and stopped."""
    with running_postgres() as server:
        yield server


@pytest.fixture
def url(fragile: PostgresServer) -> Iterator[str]:
    with fragile.schema() as url:
        yield url


class Way(Enum):
    """How the database fails."""

    BACKEND_TERMINATED = "one connection is ended by the server"
    BACKEND_KILLED = "kill -9 of the process behind one connection"
    SERVER_KILLED = "kill -9 of all its processes"
    SERVER_RESTARTED = "an operator restarts it"


@pytest.mark.parametrize("seed", range(RUNS))
@pytest.mark.parametrize("way", Way)
async def test_what_was_acknowledged_is_there_once(
    fragile: PostgresServer, url: str, way: Way, seed: int
) -> None:
    store = PostgresStore.open(url)
    await store.enqueue(group(WRITERS))
    claims = await store.claim("worker", limit=WRITERS)
    acknowledged = 0

    async def write(ident: AttemptId) -> None:
        nonlocal acknowledged
        for number in range(EVENTS):
            await store.append([call(ident, str(number))])
            acknowledged += 1
        await store.finish(ident, AttemptState.SUCCEEDED, output=ident)

    async def fail() -> None:
        chance = random.Random(seed)
        for share in sorted(chance.sample(range(WRITERS * EVENTS), 3)):
            while acknowledged < share:  # noqa: ASYNC110  turns of the loop, not a time
                await asyncio.sleep(0)
            await asyncio.to_thread(break_down, fragile, way)

    await asyncio.gather(fail(), *(write(claim.attempt.id) for claim in claims))
    expected = [str(number) for number in range(EVENTS)]
    for events in await store.events([claim.attempt.id for claim in claims]):
        assert [one.id for one in events] == expected
    assert len(await store.ended("run")) == WRITERS
    await store.close()
    assert check_database(url) == []


def break_down(server: PostgresServer, way: Way) -> None:
    if way is Way.SERVER_KILLED:
        server.kill()
        server.start()
    elif way is Way.SERVER_RESTARTED:
        server.stop()
        server.start()
    else:
        break_connection(server, way)


def break_connection(server: PostgresServer, way: Way) -> None:
    """Break one that just committed, where there is one: the server may be recovering."""
    writing = "SELECT pid FROM pg_stat_activity WHERE query LIKE '%COMMIT' LIMIT 1"
    with (
        contextlib.suppress(psycopg.OperationalError),
        psycopg.connect(server.url, autocommit=True) as connection,
    ):
        for (pid,) in connection.execute(writing).fetchall():
            if way is Way.BACKEND_KILLED:
                os.kill(pid, signal.SIGKILL)
            else:
                connection.execute("SELECT pg_terminate_backend(%s)", (pid,))


class TestOutage:
    async def test_calls_wait_while_the_database_is_gone(
        self, fragile: PostgresServer, url: str
    ) -> None:
        store = PostgresStore.open(url)
        await store.enqueue(group(1))
        fragile.stop()
        calls = [
            asyncio.ensure_future(calling)
            for calling in (store.enqueue(group(2, task="8")), store.runs(), store.claim("worker"))
        ]
        await asyncio.sleep(0)
        await asyncio.to_thread(fragile.start)
        added, runs, claims = await asyncio.gather(*calls)
        assert (added, runs, len(claims)) == (2, ["run"], 1)
        await store.close()

    @pytest.mark.long
    async def test_half_a_minute_without_the_database_costs_nothing(
        self, fragile: PostgresServer, url: str
    ) -> None:
        store = PostgresStore.open(url)
        await store.enqueue(group(1))
        (claim,) = await store.claim("worker", lease_seconds=600.0)
        events = [log(claim.attempt.id, str(number)) for number in range(20)]
        await store.append(events[:10])
        fragile.stop()
        writing = [asyncio.ensure_future(store.append([event])) for event in events[10:]]
        await asyncio.to_thread(time.sleep, 30.0)
        assert not any(one.done() for one in writing)
        fragile.start()
        await asyncio.gather(*writing)
        assert await store.events([claim.attempt.id]) == [events]
        await store.close()

    async def test_an_outage_beyond_its_patience_is_a_clear_error_and_ends(
        self, fragile: PostgresServer, url: str
    ) -> None:
        store = PostgresStore.open(url, patience_seconds=0.2)
        await store.enqueue(group(1))
        fragile.stop()
        for _ in range(2):
            calling = [store.enqueue(group(1, task=str(task))) for task in range(20)]
            results = await asyncio.gather(*calling, return_exceptions=True)
            assert all(isinstance(one, StoreUnavailable) for one in results)
            assert all("can't be reached" in str(one) for one in results)
            with pytest.raises(StoreUnavailable, match="check that PostgreSQL runs there"):
                await store.runs()
        fragile.start()
        assert await store.enqueue(group(1, task="later")) == 1
        found = await store.rollouts(RolloutQuery())
        assert [one.spec.task_id for one in found] == ["task", "later"]
        await store.close()

    async def test_closing_during_an_outage_ends(self, fragile: PostgresServer, url: str) -> None:
        store = PostgresStore.open(url, patience_seconds=0.2)
        await store.enqueue(group(1))
        fragile.stop()
        await store.close()
        fragile.start()


class Proxy:
    """Stands between a client and the server, and does what `on_request` says with each message."""

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.cut_before: bytes | None = None
        """Break the connection instead of passing on a request that ends so; once."""
        self.cut_after: bytes | None = None
        """Pass it on, and break the connection instead of passing on its answer; once."""
        self.process_number: int | None = None
        """What the client is told that its backend's is, as a pooler does."""
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def url(self, direct: str) -> str:
        """The way to the server of the URL `direct` through the proxy."""
        options = direct.partition("options=")[2]
        host = f"127.0.0.1:{self.port}"
        return f"postgresql://postgres@{host}/postgres?sslmode=disable&options={options}"

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        server = socket.socket(socket.AF_UNIX)
        server.connect(str(self._server.socket))
        silent = threading.Event()
        threading.Thread(target=self._answers, args=(server, client, silent), daemon=True).start()
        with client, server, contextlib.suppress(OSError):
            while request := client.recv(65536):
                ends = request.rstrip(b"\0")
                if self.cut_before is not None and ends.endswith(self.cut_before):
                    self.cut_before = None
                    break
                if self.cut_after is not None and ends.endswith(self.cut_after):
                    self.cut_after = None
                    silent.set()
                server.sendall(request)
            for one in (client, server):
                one.shutdown(socket.SHUT_RDWR)

    def _answers(
        self, server: socket.socket, client: socket.socket, silent: threading.Event
    ) -> None:
        with contextlib.suppress(OSError):
            while answer := server.recv(65536):
                if silent.is_set():
                    client.shutdown(socket.SHUT_RDWR)
                    break
                client.sendall(self._renumbered(answer))
            client.shutdown(socket.SHUT_RDWR)

    def _renumbered(self, answer: bytes) -> bytes:
        """Its BackendKeyData (`K`, length 12) with the process number of `process_number`."""
        place = answer.find(b"K\0\0\0\x0c")
        if self.process_number is None or place < 0:
            return answer
        number = self.process_number.to_bytes(4, "big")
        return answer[: place + 5] + number + answer[place + 9 :]


@pytest.fixture
def proxy(fragile: PostgresServer) -> Iterator[Proxy]:
    proxy = Proxy(fragile)
    yield proxy
    proxy.close()


class TestDoubt:
    """The connection breaks during COMMIT, and a claim, unlike most, would have an effect twice."""

    async def test_a_commit_whose_answer_got_lost_is_found(self, url: str, proxy: Proxy) -> None:
        store = PostgresStore.open(proxy.url(url))
        await store.enqueue(group(3))
        proxy.cut_after = b"COMMIT"
        (claim,) = await store.claim("worker")
        await self.only_this_is_running(store, claim.attempt.id)

    async def test_a_commit_that_did_not_arrive_is_made_again(self, url: str, proxy: Proxy) -> None:
        store = PostgresStore.open(proxy.url(url))
        await store.enqueue(group(3))
        proxy.cut_before = b"COMMIT"
        (claim,) = await store.claim("worker")
        await self.only_this_is_running(store, claim.attempt.id)

    async def only_this_is_running(self, store: PostgresStore, expected: AttemptId) -> None:
        rollouts = await store.rollouts(RolloutQuery())
        assert sorted(one.state for one in rollouts) == ["queued", "queued", "running"]
        (attempt,) = await store.attempts([one.id for one in rollouts])
        assert attempt.id == expected
        await store.close()


class TestPooler:
    async def test_a_pooler_is_refused_at_start(self, url: str, proxy: Proxy) -> None:
        proxy.process_number = 4711
        with pytest.raises(ConfigError, match="connection pooler such as PgBouncer"):
            PostgresStore.open(proxy.url(url))

    @pytest.mark.skipif(shutil.which("pgbouncer") is None, reason="pgbouncer is not installed")
    async def test_pgbouncer_is_refused_at_start(self, fragile: PostgresServer) -> None:
        message = "connection pooler such as PgBouncer"
        with pgbouncer(fragile) as pooled, pytest.raises(ConfigError, match=message):
            PostgresStore.open(pooled)


@contextlib.contextmanager
def pgbouncer(server: PostgresServer) -> Generator[str]:
    """The URL of a pgbouncer in transaction mode before `server`."""
    with held_port() as port:
        yield from _pgbouncer(server, port)


def _pgbouncer(server: PostgresServer, port: int) -> Generator[str]:
    folder = server.socket.parent  # which the server's user can read
    users = folder / "users.txt"
    users.write_text('"postgres" ""\n')
    settings = folder / "pgbouncer.ini"
    settings.write_text(
        f"[databases]\npostgres = host={folder} dbname=postgres user=postgres\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
        f"auth_type = any\nauth_file = {users}\npool_mode = transaction\n"
    )
    command = ["pgbouncer", str(settings)]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        user="nobody" if os.geteuid() == 0 else None,
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if "process up" in line:
                break
        yield f"postgresql://postgres@127.0.0.1:{port}/postgres"
    finally:
        process.terminate()
        process.wait()
        process.stderr.close()
