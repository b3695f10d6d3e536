"""Every method that writes, with its answer lost after the commit: the client repeats it, and it counts once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from lightningrl.schema import AttemptState, Endpoint, Failure, FailureKind, Mode, Policy
from lightningrl.store import wire
from lightningrl.store.base import RolloutQuery
from lightningrl.store.http import HttpStore
from lightningrl.store.records import Retention
from lightningrl_testkit.proxy import AnswerLosingProxy
from lightningrl_testkit.records import group, log, reward
from lightningrl_testkit.server import ServerProcess

pytestmark = pytest.mark.usefixtures("forked")

READS = frozenset(
    {
        *("rollouts", "attempts", "attempt", "events", "ended", "wait", "progress", "summary"),
        *("calls", "gateways", "dump"),
        *(
            "runs",
            "groups",
            "tasks",
            "statistics",
            "resource",
            "resources",
            "policies",
            "workers",
            "ledger",
            "secret",
            "now",
        ),
    }
)


class Site:
    """A store behind a server, reached directly and through a proxy that loses answers."""

    def __init__(self, server: ServerProcess, store: HttpStore) -> None:
        self.server = server
        self.store = store

    @asynccontextmanager
    async def losing(self, answers: int = 1) -> AsyncIterator[HttpStore]:
        """A store whose next answers get lost."""
        proxy = AnswerLosingProxy(self.server.port, losses=answers)
        async with proxy as url:
            store = HttpStore.connect(url)
            yield store
            await store.close()
        assert proxy.losses_left == 0

    async def claimed(self, size: int = 1, **fields: Any) -> list[Any]:
        """Rollouts of a new group that are running, as claims."""
        await self.store.enqueue(group(size, **fields))
        return await self.store.claim("worker", limit=size, lease_seconds=600.0)

    async def states(self) -> list[str]:
        return [one.state.value for one in await self.store.rollouts(RolloutQuery())]


@pytest_asyncio.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    with ServerProcess(tmp_path / "store.db") as server:
        store = HttpStore.connect(server.url)
        yield Site(server, store)
        await store.close()


async def enqueue(site: Site) -> None:
    async with site.losing() as store:
        assert await store.enqueue(group(3)) == 3
    assert await site.states() == ["queued"] * 3


async def claim(site: Site) -> None:
    await site.store.enqueue(group(3))
    async with site.losing(2) as store:
        claims = await store.claim("worker", limit=2)
    assert [one.rollout.spec.member for one in claims] == [0, 1]
    assert sorted(await site.states()) == ["queued", "running", "running"]


async def heartbeat(site: Site) -> None:
    (held,) = await site.claimed()
    async with site.losing() as store:
        assert await store.heartbeat("worker", [held.attempt.id], lease_seconds=900.0) == []
    _, attempt = await site.store.attempt(held.attempt.id)
    assert attempt.lease_expires_at > held.attempt.lease_expires_at


async def append(site: Site) -> None:
    (held,) = await site.claimed()
    events = [log(held.attempt.id, "1"), reward(held.attempt.id, 0.5)]
    async with site.losing() as store:
        await store.append(events)
    assert await site.store.events([held.attempt.id]) == [events]


async def finish(site: Site) -> None:
    (held,) = await site.claimed()
    failure = Failure(FailureKind.LOST, "gone")
    async with site.losing() as store:
        rollout = await store.finish(held.attempt.id, AttemptState.LOST, failure=failure)
    assert (rollout.state.value, rollout.attempts) == ("queued", 1)


async def cancel(site: Site) -> None:
    await site.store.enqueue(group(2))
    async with site.losing() as store:
        assert await store.cancel([one.id for one in group(2)]) == 2
    assert await site.states() == ["cancelled"] * 2


async def retry(site: Site) -> None:
    (held,) = await site.claimed()
    failure = Failure(FailureKind.AGENT, "raised")
    await site.store.finish(held.attempt.id, AttemptState.FAILED, failure=failure)
    async with site.losing() as store:
        assert await store.retry([held.rollout.id]) == 1
    assert await site.states() == ["queued"]


async def expire(site: Site) -> None:
    (held,) = await site.claimed()
    async with site.losing() as store:
        assert await store.expire() == 0
    assert await site.states() == ["running"]
    assert held.attempt.number == 1


async def extend(site: Site) -> None:
    # Pushed back twice, the deadline would be two hours away and not one.
    await site.store.enqueue(group(timeout_seconds=1.0))
    (held,) = await site.store.claim("worker", lease_seconds=600.0)
    async with site.losing() as store:
        await store.extend([held.attempt.id], 3600.0)
    await site.store.extend([held.attempt.id], -3600.0)
    while await site.store.expire() == 0 and (await site.states()) == ["running"]:
        continue
    assert (await site.store.attempts([held.rollout.id]))[0].state is AttemptState.TIMED_OUT


async def renew_all_leases(site: Site) -> None:
    (held,) = await site.claimed()
    async with site.losing() as store:
        assert await store.renew_all_leases(3600.0) == 1
    _, attempt = await site.store.attempt(held.attempt.id)
    added = attempt.lease_expires_at - held.attempt.lease_expires_at
    assert timedelta(seconds=2900) < added < timedelta(seconds=3100)  # from 600 s to 3600 s


async def put_policy(site: Site) -> None:
    policy = Policy(name="policy", run="run", version=3, endpoints=(Endpoint("http://engine/v1"),))
    async with site.losing() as store:
        await store.put_policy(policy)
    assert await site.store.policies("run") == [policy]


async def see_gateway(site: Site) -> None:
    async with site.losing() as store:
        await store.see_gateway("gateway")
    assert [one.name for one in await site.store.gateways(seen_within_seconds=60.0)] == ["gateway"]


async def forget_gateway(site: Site) -> None:
    await site.store.see_gateway("gateway")
    async with site.losing() as store:
        await store.forget_gateway("gateway")
    assert await site.store.gateways(seen_within_seconds=60.0) == []


async def load(site: Site) -> None:
    await site.store.enqueue(group(1))
    rollouts = await site.store.dump("run")
    await site.store.delete_run("run")
    async with site.losing() as store:
        await store.load(rollouts=rollouts)
    assert [one.rollout for one in await site.store.dump("run")] == [
        one.rollout for one in rollouts
    ]


async def put_resource(site: Site) -> None:
    async with site.losing() as store:
        put = await store.put_resource("run", "prompt", {"text": "Think."})
    assert [one.version for one in await site.store.resources("run")] == [put.version]


async def taken(site: Site) -> None:
    for held in await site.claimed(2):
        await site.store.append([reward(held.attempt.id, 1.0)])
        await site.store.finish(held.attempt.id, AttemptState.SUCCEEDED)


async def take(site: Site) -> None:
    await taken(site)
    async with site.losing() as store:
        groups = await store.take("run", 1)
    assert [len(one.rollouts) for one in groups] == [2]
    assert len(await site.store.ledger("run")) == 1


async def commit(site: Site) -> None:
    await taken(site)
    await site.store.take("run", 1)
    async with site.losing() as store:
        await store.commit("run", 1)
    assert [one.committed for one in await site.store.ledger("run")] == [True]


async def roll_back(site: Site) -> None:
    await taken(site)
    await site.store.take("run", 1)
    async with site.losing() as store:
        assert await store.roll_back("run", after=0) == [1]
    assert await site.store.ledger("run") == []


async def give_live(site: Site) -> None:
    (one,) = group(mode=Mode.LIVE)
    await site.store.enqueue([one])
    (held,) = await site.store.claim("service", rollout_ids=[one.id])
    await site.store.append([reward(held.attempt.id, 1.0)])
    await site.store.finish(held.attempt.id, AttemptState.SUCCEEDED)
    async with site.losing() as store:
        assert await store.give_live("run", 1, [one.id]) == [one.id]
    assert [of.group_id for of in await site.store.take("run", 1)] == [one.group_id]


async def delete_rollouts(site: Site) -> None:
    await site.store.enqueue(group(3))
    await site.store.cancel([one.id for one in group(3)])
    async with site.losing() as store:
        assert await store.delete_rollouts([one.id for one in group(2)]) == 2
    assert await site.states() == ["cancelled"]


async def delete_run(site: Site) -> None:
    await site.store.enqueue(group(2))
    async with site.losing() as store:
        assert await store.delete_run("run") == 2
    assert await site.states() == []


async def retain(site: Site) -> None:
    rollouts = group(2, mode=Mode.VAL)
    await site.store.enqueue(rollouts)
    await site.store.cancel([one.id for one in rollouts])
    async with site.losing() as store:
        assert await store.retain(Retention(max_age_seconds=0.0)) == 2
    assert await site.states() == []


CASES: dict[str, Callable[[Site], Awaitable[None]]] = {
    one.__name__: one
    for one in (
        *(enqueue, claim, heartbeat, append, finish, cancel, retry, expire, extend),
        *(renew_all_leases, put_policy, put_resource, take, commit, roll_back, give_live),
        *(delete_rollouts, delete_run, retain, see_gateway, forget_gateway, load),
    )
}


def test_every_method_that_writes_has_a_case() -> None:
    assert set(CASES) == set(wire.METHODS) - READS


@pytest.mark.parametrize("method", CASES)
async def test_a_call_whose_answer_got_lost_counts_once(site: Site, method: str) -> None:
    await CASES[method](site)
