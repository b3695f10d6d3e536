"""Claims about gateways that share a store: seen, waited for, forgotten."""
# ruff: noqa: D102  the name of a test is its claim

from __future__ import annotations

import asyncio

from lightningrl.schema import DrainedHold
from lightningrl.store.base import Store

DRAINED = DrainedHold(run="run", policy="policy", since=3, stopped=2)


class GatewayClaims:
    """`see_gateway`, `forget_gateway`, `gateways`."""

    async def test_a_gateway_is_known_with_what_it_drained_last(self, store: Store) -> None:
        await store.see_gateway("b")
        await store.see_gateway("a", [DRAINED])
        await store.see_gateway("b", [DRAINED])
        await store.see_gateway("b")
        one, two = await store.gateways(seen_within_seconds=60.0)
        assert (one.name, one.drained) == ("a", (DRAINED,))
        assert (two.name, two.drained) == ("b", ())
        assert two.seen_at >= one.seen_at

    async def test_a_gateway_that_was_silent_is_passed_over(self, store: Store) -> None:
        await store.see_gateway("a")
        assert await store.gateways(seen_within_seconds=-1.0) == []

    async def test_a_gateway_that_ends_is_forgotten(self, store: Store) -> None:
        await store.see_gateway("a")
        await store.forget_gateway("a")
        await store.forget_gateway("a")
        assert await store.gateways(seen_within_seconds=60.0) == []

    async def test_waiting_for_gateways_ends_with_what_one_drained(self, store: Store) -> None:
        await store.see_gateway("a")
        seen = await store.gateways(seen_within_seconds=60.0)
        waiting = asyncio.ensure_future(
            store.gateways(seen_within_seconds=60.0, seen=seen, wait_seconds=60.0)
        )
        await store.see_gateway("a")  # heard again, but nothing is new
        await store.see_gateway("a", [DRAINED])
        [found] = await waiting
        assert found.drained == (DRAINED,)

    async def test_who_has_seen_all_gateways_gets_them_when_time_is_up(self, store: Store) -> None:
        await store.see_gateway("a")
        seen = await store.gateways(seen_within_seconds=60.0)
        again = await store.gateways(seen_within_seconds=60.0, seen=seen, wait_seconds=0.0)
        assert [one.name for one in again] == ["a"]
