"""Claims about arguments that no store can keep or look for."""
# ruff: noqa: D102  the name of a test is its claim

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

import pytest
from msgspec.structs import replace

from lightningrl.errors import ConfigError
from lightningrl.schema import AttemptState, RolloutId
from lightningrl.store.base import GroupQuery, RolloutQuery, Store
from lightningrl_testkit.records import group, log, policy, reward

_BEYOND = 1 << 70


class ArgumentClaims:
    """What is refused, on every database alike."""

    async def test_a_negative_limit_is_refused(self, store: Store) -> None:
        await store.enqueue(group())
        await all_refused(
            "limit",
            store.claim("worker", limit=-1),
            store.rollouts(RolloutQuery(limit=-1)),
            store.groups(GroupQuery(run="run", limit=-1)),
            store.tasks(GroupQuery(run="run", limit=-1)),
            store.ended("run", limit=-1),
            store.dump("run", limit=-1),
        )
        assert len(await store.claim("worker")) == 1

    async def test_an_integer_beyond_64_bits_is_refused(self, store: Store) -> None:
        await store.enqueue(group())
        (claim,) = await store.claim("worker")
        (new,) = group(task="new")
        await all_refused(
            "64 bits",
            store.enqueue([replace(new, iteration=_BEYOND)]),
            store.enqueue([replace(new, iteration=1 << 63)]),
            store.enqueue([replace(new, task={"question": _BEYOND})]),
            store.finish(claim.attempt.id, AttemptState.SUCCEEDED, output=_BEYOND),
            store.put_resource("run", "prompt", _BEYOND),
            store.rollouts(RolloutQuery(iteration=_BEYOND)),
            store.ended("run", after=_BEYOND),
        )
        assert await store.enqueue([new]) == 1

    async def test_a_name_with_a_nul_is_refused(self, store: Store) -> None:
        await store.enqueue(group())
        (claim,) = await store.claim("worker")
        ident = claim.attempt.id
        (new,) = group(task="new")
        await all_refused(
            "NUL",
            store.enqueue([new, replace(new, id=RolloutId("a\0b"))]),
            store.enqueue([replace(new, task_id="a\0b")]),
            store.append([log(ident, "1"), log(ident, "a\0b")]),
            store.append([reward(ident, 1.0, name="a\0b")]),
            store.claim("a\0b"),
            store.heartbeat("a\0b", []),
            store.put_resource("run", "a\0b", 1),
            store.put_policy(replace(policy(0), name="a\0b")),
            store.see_gateway("a\0b"),
        )
        assert await store.events([ident]) == [[]]
        message = log(ident, "1", "a message may hold \0")
        await store.append([message])
        assert await store.events([ident]) == [[message]]

    async def test_text_that_is_not_unicode_is_refused(self, store: Store) -> None:
        (new,) = group()
        await all_refused("surrogates", store.enqueue([replace(new, task_id="\ud800")]))


async def all_refused(why: str, *calls: Coroutine[Any, Any, object]) -> None:
    """Each raises `ConfigError` with a message that says `why`."""
    for call in calls:
        with pytest.raises(ConfigError, match=why):
            await call
