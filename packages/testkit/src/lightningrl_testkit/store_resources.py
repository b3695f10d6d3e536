"""Claims about named resources and their versions."""
# ruff: noqa: D102  the name of a test is its claim

from __future__ import annotations

import pytest
from msgspec.structs import replace

from lightningrl.errors import Conflict, NotFound
from lightningrl.schema import Resource
from lightningrl.store.base import RolloutQuery, Store
from lightningrl_testkit.records import group

PROMPT = {"system": "Be brief.", "examples": [1, None, 2.5]}


async def put(store: Store, *values: object) -> list[Resource]:
    """The versions that `values` become, one after the other."""
    return [await store.put_resource("run", "prompt", value) for value in values]


class ResourceClaims:
    """Put, read, list, pin."""

    async def test_a_resource_is_read_as_it_was_put(self, store: Store) -> None:
        (first,) = await put(store, PROMPT)
        assert (first.run, first.name, first.version) == ("run", "prompt", 1)
        assert first.value == PROMPT
        assert await store.resource("run", "prompt") == first

    async def test_each_new_value_is_the_next_version(self, store: Store) -> None:
        versions = await put(store, "a", "b", "a")
        assert [one.version for one in versions] == [1, 2, 3]
        assert await store.resource("run", "prompt") == versions[2]
        assert await store.resource("run", "prompt", version=2) == versions[1]

    async def test_putting_the_latest_value_again_is_putting_it_once(self, store: Store) -> None:
        first, again, null, null_again = await put(store, "a", "a", None, None)
        assert (again, null_again) == (first, null)
        assert (first.version, null.version) == (1, 2)

    async def test_the_caller_s_id_finds_a_version_whatever_came_later(self, store: Store) -> None:
        first = await store.put_resource("run", "prompt", "a", ident="one")
        second = await store.put_resource("run", "prompt", "a", ident="two")
        assert await store.put_resource("run", "prompt", "a", ident="one") == first
        assert (first.version, second.version) == (1, 2)
        with pytest.raises(Conflict, match="'one'"):
            await store.put_resource("run", "prompt", "b", ident="one")

    async def test_listing_gives_the_latest_of_each_or_all_of_one(self, store: Store) -> None:
        versions = await put(store, "a", "b")
        style = await store.put_resource("run", "a style", "dry")
        await store.put_resource("other", "prompt", "c")
        assert await store.resources("run") == [style, versions[1]]
        assert await store.resources("run", name="prompt") == versions
        assert await store.resources("unknown") == []
        assert await store.resources("run", name="unknown") == []

    async def test_what_is_not_there_is_not_found(self, store: Store) -> None:
        await put(store, "a")
        with pytest.raises(NotFound, match="'style'"):
            await store.resource("run", "style")
        with pytest.raises(NotFound, match="version 2"):
            await store.resource("run", "prompt", version=2)

    async def test_a_claim_hands_over_what_its_rollout_is_pinned_to(self, store: Store) -> None:
        first, _ = await put(store, "a", "b")
        style = await store.put_resource("run", "a style", "dry")
        await store.enqueue(group(resources={"prompt": 1, "a style": 1}))
        await store.enqueue(group(task="free"))
        pinned, free = await store.claim("worker", limit=2)
        assert pinned.resources == (style, first)
        assert free.resources == ()

    async def test_a_rollout_is_not_pinned_to_what_is_not_there(self, store: Store) -> None:
        await put(store, "a")
        with pytest.raises(NotFound, match="version 2"):
            await store.enqueue([*group(task="free"), *group(resources={"prompt": 2})])
        assert await store.rollouts(RolloutQuery()) == []

    async def test_an_id_pinned_to_something_else_is_a_conflict(self, store: Store) -> None:
        await put(store, "a", "b")
        (one,) = group(resources={"prompt": 1})
        await store.enqueue([one])
        with pytest.raises(Conflict, match="resources"):
            await store.enqueue([replace(one, resources={"prompt": 2})])
