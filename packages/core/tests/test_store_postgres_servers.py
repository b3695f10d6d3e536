"""Several `lightningrl serve` on one PostgreSQL database are one store to their clients."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Generator
from contextlib import ExitStack

import pytest

from lightningrl.errors import StoreUnavailable
from lightningrl.schema import AttemptState, RolloutId
from lightningrl.store import open_store
from lightningrl.store.base import RolloutQuery
from lightningrl.store.databases import check_database
from lightningrl.store.http import HttpStore
from lightningrl_testkit.records import call, group, policy, reward
from lightningrl_testkit.server import serving

pytestmark = pytest.mark.usefixtures("forked")

ROLLOUTS = 120


@pytest.fixture
def servers(postgres_url: str) -> Generator[list[tuple[str, subprocess.Popen[str]]]]:
    with ExitStack() as stack:
        yield [stack.enter_context(serving(postgres_url)) for _ in range(2)]


async def test_claimers_of_two_servers_never_get_one_rollout_twice(
    servers: list[tuple[str, subprocess.Popen[str]]], postgres_url: str
) -> None:
    stores = [HttpStore.connect(url) for url, _ in servers]
    await stores[0].enqueue(group(ROLLOUTS))

    async def work(place: int) -> list[RolloutId]:
        """Claim through one server, write through the other."""
        mine: list[RolloutId] = []
        claiming, writing = stores[place % 2], stores[1 - place % 2]
        while claims := await claiming.claim(f"worker-{place}", limit=2):
            for claim in claims:
                ident = claim.attempt.id
                await writing.append([call(ident, "1"), reward(ident, 1.0)])
                await writing.finish(ident, AttemptState.SUCCEEDED)
                mine.append(claim.rollout.id)
        return mine

    got = [one for mine in await asyncio.gather(*map(work, range(8))) for one in mine]
    assert len(got) == len(set(got)) == ROLLOUTS
    assert len({one.cursor for one in await stores[0].ended("run")}) == ROLLOUTS
    (taken,) = await stores[1].take("run", 1)
    assert len(taken.rollouts) == ROLLOUTS
    for store in stores:
        await store.close()
    assert check_database(postgres_url) == []


async def test_what_one_server_changed_wakes_who_waits_at_the_other(
    servers: list[tuple[str, subprocess.Popen[str]]],
) -> None:
    one, other = [HttpStore.connect(url) for url, _ in servers]
    waiting = [
        asyncio.ensure_future(one.claim("worker", wait_seconds=60.0)),
        asyncio.ensure_future(one.policies(seen=[], wait_seconds=60.0)),
    ]
    await other.put_policy(policy(1))
    await other.enqueue(group(1))
    claims, policies = await asyncio.gather(*waiting)
    assert len(claims) == 1
    assert policies == [policy(1)]
    for store in (one, other):
        await store.close()


@pytest.mark.parametrize("place", [0, 1])
async def test_what_a_killed_server_acknowledged_is_there(
    servers: list[tuple[str, subprocess.Popen[str]]], postgres_url: str, place: int
) -> None:
    url, process = servers[place]
    store = HttpStore.connect(url, retry_seconds=0.0)
    await store.enqueue(group(4))
    claims = await store.claim("worker", limit=4)
    acknowledged: dict[str, int] = {claim.attempt.id: 0 for claim in claims}

    async def write(ident: str) -> None:
        try:
            for number in range(10_000):
                await store.append([call(ident, str(number))])
                acknowledged[ident] = number + 1
                if sum(acknowledged.values()) == 60:
                    process.kill()
        except StoreUnavailable:
            return

    await asyncio.gather(*(write(claim.attempt.id) for claim in claims))
    survivor = HttpStore.connect(servers[1 - place][0])
    for claim in claims:
        (events,) = await survivor.events([claim.attempt.id])
        names = [one.id for one in events]
        assert names == [str(number) for number in range(len(names))]
        assert len(names) >= acknowledged[claim.attempt.id]
    assert len(await survivor.rollouts(RolloutQuery())) == 4
    for one in (store, survivor):
        await one.close()
    assert check_database(postgres_url) == []


async def test_a_database_that_is_served_can_be_opened_by_others_too(
    servers: list[tuple[str, subprocess.Popen[str]]], postgres_url: str
) -> None:
    direct = open_store(postgres_url)
    served = HttpStore.connect(servers[0][0])
    assert await served.enqueue(group(2)) == 2
    assert len(await direct.rollouts(RolloutQuery())) == 2
    assert await direct.secret() == await served.secret()
    await direct.close()
    await served.close()
