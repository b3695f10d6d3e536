"""Real server processes, killed by real signals."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from pathlib import Path

import apsw
import psutil
import pytest

from lightningrl.errors import StoreLocked, StoreUnavailable
from lightningrl.schema import AttemptId, AttemptState
from lightningrl.store.base import RolloutQuery
from lightningrl.store.http import HttpStore
from lightningrl.store.sqlite import SqliteStore
from lightningrl_testkit.records import group, log
from lightningrl_testkit.server import ServerProcess

pytestmark = pytest.mark.usefixtures("forked")

RUNS = int(os.environ.get("LIGHTNINGRL_FAULT_RUNS", "1"))

posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM to handle")


class Writers:
    """Sixteen clients that append one event after the other until the server is gone."""

    def __init__(self, store: HttpStore, attempt: AttemptId, enough: int) -> None:
        self.acknowledged: list[str] = []
        self.enough_acknowledged = asyncio.Event()
        self._enough = enough
        self._tasks = [
            asyncio.create_task(self._write(store, attempt, writer)) for writer in range(16)
        ]

    async def _write(self, store: HttpStore, attempt: AttemptId, writer: int) -> None:
        for number in range(1_000_000):
            ident = f"{writer}-{number}"
            try:
                await store.append([log(attempt, ident, "x" * 500)])
            except StoreUnavailable:
                return
            self.acknowledged.append(ident)
            if len(self.acknowledged) == self._enough:
                self.enough_acknowledged.set()

    async def end(self) -> None:
        await asyncio.gather(*self._tasks)


async def append_and_kill(server: ServerProcess, after: int) -> tuple[AttemptId, list[str]]:
    """Kill the server once `after` appends are acknowledged, while others are under way."""
    store = HttpStore.connect(server.url, retry_seconds=0.0)
    await store.enqueue(group())
    (claim,) = await store.claim("worker")
    writers = Writers(store, claim.attempt.id, after)
    await writers.enough_acknowledged.wait()
    server.kill()
    await writers.end()
    await store.close()
    return claim.attempt.id, writers.acknowledged


@pytest.mark.parametrize("seed", range(RUNS))
async def test_killing_the_server_loses_nothing_acknowledged(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "store.db"
    after = random.Random(seed).randrange(1, 1000)
    attempt, acknowledged = await append_and_kill(ServerProcess(path), after)
    assert len(acknowledged) >= after
    store = SqliteStore.open(path)
    (events,) = await store.events([attempt])
    found = [event.id for event in events]
    assert len(found) == len(set(found))
    assert set(acknowledged) <= set(found)
    await store.close()
    connection = apsw.Connection(str(path))
    assert connection.pragma("integrity_check") == "ok"
    connection.close()


async def test_a_client_goes_on_after_the_server_was_killed_and_restarted(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    first = ServerProcess(path)
    store = HttpStore.connect(first.url)
    await store.enqueue(group(2))
    (claim,) = await store.claim("worker", lease_seconds=20.0)
    waiting = asyncio.create_task(
        store.progress("run", group()[0].mode, 1, seen=0, wait_seconds=60)
    )
    first.kill()
    with ServerProcess(path, port=first.port):
        # At its start the server gave 30 seconds to the attempt, which had 20 of the former one.
        _, attempt = await store.attempt(claim.attempt.id)
        assert attempt.lease_expires_at > claim.attempt.lease_expires_at
        assert await store.heartbeat("worker", [attempt.id]) == []
        await store.append([log(claim.attempt.id, "1")])
        await store.finish(claim.attempt.id, AttemptState.SUCCEEDED)
        assert (await waiting).succeeded == 1
        await store.close()


async def test_the_server_expires_leases(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "store.db") as server:
        store = HttpStore.connect(server.url)
        await store.enqueue(group())
        await store.claim("dies", lease_seconds=0.0)
        (claim,) = await store.claim("lives", wait_seconds=60.0)
        assert claim.attempt.number == 2
        await store.close()


async def test_a_second_writer_is_refused_and_readers_are_not(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with ServerProcess(path) as server:
        with pytest.raises(StoreLocked, match=f"{server.process.pid}; use {server.url} "):
            SqliteStore.open(path)
        with pytest.raises(RuntimeError, match=server.url):
            ServerProcess(path)
        store = HttpStore.connect(server.url)
        reader = SqliteStore.open(path, read_only=True)
        for number in range(1, 4):
            await store.enqueue(group(task=str(number)))
            assert len(await reader.rollouts(RolloutQuery())) == number
        await reader.close()
        await store.close()


@posix
async def test_on_sigterm_it_ends_well_though_someone_waits(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path / "store.db")
    store = HttpStore.connect(server.url, retry_seconds=0.0)
    waiting = asyncio.create_task(store.claim("worker", wait_seconds=60.0))
    while not await store.workers():
        continue
    assert await asyncio.to_thread(server.stop) == ""
    assert server.process.returncode == 0
    with pytest.raises(StoreUnavailable):
        await waiting
    await store.close()


@posix
def test_it_ends_with_its_parent(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    code = (
        "import sys; from lightningrl.server import serve;"
        "serve(sys.argv[1], parent_fd=int(sys.argv[2]), ready=lambda url: print(url, flush=True))"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path / "store.db"), str(reading)]
    server = subprocess.Popen(arguments, pass_fds=[reading], stdout=subprocess.PIPE, text=True)
    os.close(reading)
    assert server.stdout is not None
    assert server.stdout.readline().startswith("http://")
    os.close(writing)  # what the system does when the parent dies
    assert server.wait(30) == 0
    server.stdout.close()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells another process's limit")
def test_it_may_open_as_many_files_as_the_system_grants(tmp_path: Path) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    try:
        with ServerProcess(tmp_path / "store.db") as server:
            allowed = psutil.Process(server.process.pid).rlimit(psutil.RLIMIT_NOFILE)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert allowed == (before[1], before[1])
