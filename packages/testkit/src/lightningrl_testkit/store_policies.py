"""Claims about policies: replaced whole, changed by one of several, and waited for."""
# ruff: noqa: D102  the name of a test is its claim

from __future__ import annotations

import asyncio

import pytest

from lightningrl.errors import Conflict
from lightningrl.store.base import Store
from lightningrl_testkit.records import policy


class PolicyClaims:
    """`put_policy`, `policies`."""

    async def test_a_policy_is_replaced_and_read_whole(self, store: Store) -> None:
        await store.put_policy(policy(0))
        await store.put_policy(policy(1))
        await store.put_policy(policy(0, name="another"))
        await store.put_policy(policy(0, run="other"))
        assert await store.policies("run") == [policy(0, name="another"), policy(1)]
        assert len(await store.policies()) == 3

    async def test_a_policy_s_version_never_goes_down(self, store: Store) -> None:
        await store.put_policy(policy(2))
        await store.put_policy(policy(2))
        with pytest.raises(Conflict, match="policy"):
            await store.put_policy(policy(1))
        assert await store.policies() == [policy(2)]

    async def test_a_change_of_what_was_changed_meanwhile_is_refused(self, store: Store) -> None:
        await store.put_policy(policy(1))
        await store.put_policy(policy(2), if_was=policy(1))
        with pytest.raises(Conflict, match="changed meanwhile"):
            await store.put_policy(policy(3), if_was=policy(1))
        assert await store.policies() == [policy(2)]

    async def test_a_change_that_is_repeated_changes_nothing(self, store: Store) -> None:
        await store.put_policy(policy(1))
        for _ in range(2):
            await store.put_policy(policy(2), if_was=policy(1))
        assert await store.policies() == [policy(2)]

    async def test_what_is_not_there_was_nothing(self, store: Store) -> None:
        with pytest.raises(Conflict, match="changed meanwhile"):
            await store.put_policy(policy(2), if_was=policy(1))
        assert await store.policies() == []

    async def test_of_many_who_change_one_policy_at_once_one_wins(self, store: Store) -> None:
        await store.put_policy(policy(0))
        changes = [store.put_policy(policy(version), if_was=policy(0)) for version in range(1, 9)]
        results = await asyncio.gather(*changes, return_exceptions=True)
        (winner,) = [place for place, result in enumerate(results) if result is None]
        assert all(isinstance(result, Conflict) for result in results if result is not None)
        assert await store.policies() == [policy(winner + 1)]

    async def test_waiting_for_policies_ends_with_a_change(self, store: Store) -> None:
        await store.put_policy(policy(0))
        waiting = asyncio.ensure_future(store.policies("run", seen=[policy(0)], wait_seconds=60.0))
        await store.put_policy(policy(7, run="other"))
        await store.put_policy(policy(1))
        assert await waiting == [policy(1)]

    async def test_policies_that_differ_from_those_seen_are_told_at_once(
        self, store: Store
    ) -> None:
        await store.put_policy(policy(1))
        assert await store.policies(seen=[policy(0)], wait_seconds=3600.0) == [policy(1)]
        assert await store.policies(wait_seconds=3600.0) == [policy(1)]
        assert await store.policies(seen=[policy(1)]) == [policy(1)]
