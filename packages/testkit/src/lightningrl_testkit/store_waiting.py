"""Claims about waiting for rollouts by name."""
# ruff: noqa: D102  the name of a test is its claim

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from lightningrl.errors import NotFound
from lightningrl.schema import AttemptState, Claim, GroupId, RolloutId
from lightningrl.store.base import Store
from lightningrl_testkit.records import group


async def succeed(store: Store, claims: Sequence[Claim]) -> None:
    """End attempts well, one after the other."""
    for claim in claims:
        await store.finish(claim.attempt.id, AttemptState.SUCCEEDED)


class WaitingClaims:
    """`wait`."""

    async def test_waiting_ends_with_the_last_of_the_named(self, store: Store) -> None:
        one, two, other = group(3)
        await store.enqueue([one, two, other])
        claims = await store.claim("worker", limit=2)
        waiting = asyncio.ensure_future(store.wait([two.id, one.id], wait_seconds=60.0))
        await succeed(store, claims)
        assert [found.id for found in await waiting] == [two.id, one.id]

    async def test_waiting_for_a_group_is_waiting_for_all_its_members(self, store: Store) -> None:
        members, other = group(2), group(1, task="other")
        await store.enqueue([members[1], *other, members[0]])
        claims = await store.claim("worker", limit=3)
        waiting = asyncio.ensure_future(
            store.wait(group_ids=[members[0].group_id], wait_seconds=60.0)
        )
        await succeed(store, [claims[0], claims[2]])
        assert [found.id for found in await waiting] == [one.id for one in members]

    async def test_without_time_to_wait_it_tells_what_has_ended(self, store: Store) -> None:
        await store.enqueue(group(3))
        await succeed(store, await store.claim("worker"))
        await store.cancel([group(3)[2].id])
        found = await store.wait(group_ids=[group()[0].group_id])
        assert [(one.spec.member, one.state.value) for one in found] == [
            (0, "succeeded"),
            (2, "cancelled"),
        ]

    async def test_one_that_is_named_twice_comes_once(self, store: Store) -> None:
        await store.enqueue(group(2))
        await succeed(store, await store.claim("worker", limit=2))
        first, second = (one.id for one in group(2))
        ids = [second, second, first]
        found = await store.wait(ids, group_ids=[group()[0].group_id], wait_seconds=60.0)
        assert [one.id for one in found] == [second, first]

    async def test_nothing_named_is_nothing_to_wait_for(self, store: Store) -> None:
        assert await store.wait(wait_seconds=3600.0) == []

    async def test_what_was_never_enqueued_is_not_waited_for(self, store: Store) -> None:
        await store.enqueue(group())
        with pytest.raises(NotFound, match="'nobody'"):
            await store.wait([group()[0].id, RolloutId("nobody")], wait_seconds=3600.0)
        with pytest.raises(NotFound, match="group 'none'"):
            await store.wait(group_ids=[GroupId("none")], wait_seconds=3600.0)
