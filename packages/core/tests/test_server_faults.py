"""A server whose disk is full, or which is away: clear errors, and nothing acknowledged is lost."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import aiohttp
import msgspec
import psutil
import pytest

from lightningrl.errors import StoreUnavailable
from lightningrl.store.http import HttpStore
from lightningrl_testkit.records import group, log
from lightningrl_testkit.server import ServerProcess

pytestmark = pytest.mark.usefixtures("forked")

AWAY_SECONDS = 30.0


async def readiness(url: str) -> tuple[int, str]:
    """Status and reason of `/readyz`."""
    async with aiohttp.ClientSession() as http, http.get(url + "/readyz") as response:
        return response.status, str(msgspec.json.decode(await response.read())["reason"])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits another process's files")
async def test_a_full_disk_is_said_and_loses_nothing(tmp_path: Path) -> None:
    acknowledged: list[str] = []
    with ServerProcess(tmp_path / "store.db") as server:
        store = HttpStore.connect(server.url)
        await store.enqueue(group())
        (claim,) = await store.claim("worker", lease_seconds=600.0)
        attempt = claim.attempt.id
        assert await readiness(server.url) == (200, "None")
        files = psutil.Process(server.process.pid)
        before = files.rlimit(psutil.RLIMIT_FSIZE)
        files.rlimit(psutil.RLIMIT_FSIZE, (200_000, before[1]))

        async def fill() -> None:
            for number in range(10_000):
                await store.append([log(attempt, str(number), "x" * 1000)])
                acknowledged.append(str(number))

        with pytest.raises(StoreUnavailable, match=r"store\.db.* (disk|space)"):
            await fill()
        # A checkpoint may have made room for a row meanwhile: now there is none for anything.
        files.rlimit(psutil.RLIMIT_FSIZE, (1, before[1]))
        status, reason = await readiness(server.url)
        assert (status, "disk" in reason) == (503, True)
        files.rlimit(psutil.RLIMIT_FSIZE, before)
        await store.append([log(attempt, "after")])  # there is room again: it goes on by itself
        assert await readiness(server.url) == (200, "None")
        (events,) = await store.events([attempt])
        await store.close()
    assert len(acknowledged) > 10
    assert [event.id for event in events] == [*acknowledged, "after"]


async def test_a_client_tells_when_its_patience_is_over_and_may_try_again(tmp_path: Path) -> None:
    first = ServerProcess(tmp_path / "store.db")
    store = HttpStore.connect(first.url, retry_seconds=0.2)
    await store.enqueue(group())
    (claim,) = await store.claim("worker", lease_seconds=600.0)
    first.kill()
    event = log(claim.attempt.id, "1")
    with pytest.raises(StoreUnavailable, match=f"{first.url} can't be reached"):
        await store.append([event])
    with ServerProcess(tmp_path / "store.db", port=first.port):
        await store.append([event])
        assert await store.events([claim.attempt.id]) == [[event]]
        await store.close()


@pytest.mark.long
async def test_a_server_that_is_away_for_half_a_minute_costs_nothing(tmp_path: Path) -> None:
    first = ServerProcess(tmp_path / "store.db")
    store = HttpStore.connect(first.url, retry_seconds=AWAY_SECONDS + 30.0)
    await store.enqueue(group())
    (claim,) = await store.claim("worker", lease_seconds=600.0)
    events = [log(claim.attempt.id, str(number)) for number in range(20)]
    first.kill()
    writing = [asyncio.create_task(store.append([event])) for event in events]
    await asyncio.to_thread(time.sleep, AWAY_SECONDS)
    with ServerProcess(tmp_path / "store.db", port=first.port):
        await asyncio.gather(*writing)
        (found,) = await store.events([claim.attempt.id])
        await store.close()
    assert sorted(found, key=lambda event: int(event.id)) == events
