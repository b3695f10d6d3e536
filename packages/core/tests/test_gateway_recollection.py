"""What the gateway remembers of an attempt is what the store has, and no call is read twice for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from lightningrl.gateway.recollection import Recollection
from lightningrl.machine.clock import SystemClock
from lightningrl.schema import AttemptId, CallEvent
from lightningrl.store.sqlite import SqliteStore
from lightningrl_testkit.records import call
from lightningrl_testkit.store_events import running_attempt


class Counted(SqliteStore):
    """Counts the calls that are read."""

    read = 0
    meanwhile: Callable[[], object] = staticmethod(lambda: None)
    """What happens between a reading and its answer."""

    async def calls(self, attempt_id: AttemptId, *, above: int = 0) -> list[CallEvent]:
        found = await super().calls(attempt_id, above=above)
        self.read += len(found)
        self.meanwhile()
        return found


class Shared(Counted):
    """As where several gateways write."""

    shared = True


@pytest.fixture(params=[Counted, Shared])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Counted]:
    store = request.param.open(tmp_path / "store.db", clock=SystemClock())
    yield store
    await store.close()


async def test_calls_of_this_gateway_are_not_read_again(store: Counted) -> None:
    attempt, recollection = await running_attempt(store), Recollection(store)
    for turn in range(5):
        recorded = await recollection.of(attempt)
        assert recorded.count == turn
        one = call(attempt, str(turn))
        await store.append([one])
        recollection.note(one)
    assert store.read == 0  # the first reading found none
    assert (await Recollection(store).of(attempt)).count == 5
    assert store.read == 5


async def test_a_call_that_is_committed_while_the_attempt_is_read_is_there(store: Counted) -> None:
    attempt, recollection = await running_attempt(store), Recollection(store)
    first, late = call(attempt, "1"), call(attempt, "2")
    await store.append([first])

    def note() -> None:
        store.meanwhile = lambda: None
        recollection.note(first)
        recollection.note(late)

    store.meanwhile = note
    found = await asyncio.gather(recollection.of(attempt), recollection.of(attempt))
    assert found[0].count == 2


async def test_another_gateways_calls_are_read_once(tmp_path: Path) -> None:
    store = Shared.open(tmp_path / "store.db", clock=SystemClock())
    assert isinstance(store, Shared)
    attempt, recollection = await running_attempt(store), Recollection(store)
    await store.append([call(attempt, "1")])
    assert (await recollection.of(attempt)).count == 1
    await store.append([call(attempt, "2")])
    assert [(await recollection.of(attempt)).count for _ in range(3)] == [2, 2, 2]
    assert store.read == 3
    await store.close()
