"""Work that is handed to threads belongs to the rollout that handed it over, and nothing else is touched."""

from __future__ import annotations

import asyncio
import contextvars
import decimal
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from multiprocessing.pool import ThreadPool

import pytest

import lightningrl
from lightningrl.capture.carrying import carrying, reward_open, rollout_open
from lightningrl.capture.context import RolloutContext, acting_agent, current, is_judging
from lightningrl.schema import AttemptId, RolloutId
from lightningrl_testkit.contexts import rollout_context

HOOKED = (
    (threading.Thread, "start"),
    (ThreadPoolExecutor, "submit"),
    *((ThreadPool, name) for name in ("__init__", "apply_async", "_map_async", "imap", "imap_unordered")),
)  # fmt: skip


def make(name: str) -> RolloutContext:
    return rollout_context(rollout_id=RolloutId(name), attempt_id=AttemptId(f"a-{name}"))


def whose(_: object = None) -> str | None:
    context = current()
    return None if context is None else context.rollout_id


def by_thread(work: Callable[[], str | None]) -> str | None:
    found: list[str | None] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    assert "run" not in vars(thread)  # it is as Python made it
    return found[0]


def test_a_thread_belongs_to_the_rollout_that_started_it_step_and_agent_included() -> None:
    with rollout_open(make("one")), lightningrl.step("tool", "search", agent="writer") as step:
        assert by_thread(whose) == "one"
        assert by_thread(acting_agent) == "writer"

        def below() -> str | None:
            with lightningrl.step("tool", "inner") as inner:
                return inner.parent and inner.parent.id

        assert by_thread(below) == step.id
    assert by_thread(whose) is None


def test_a_timer_and_a_subclass_of_thread_are_threads() -> None:
    found: list[str | None] = []

    class Worker(threading.Thread):
        def run(self) -> None:
            found.append(whose())

    with rollout_open(make("one")):
        for thread in (Worker(), threading.Timer(0.0, lambda: found.append(whose()))):
            thread.start()
            thread.join()
    assert found == ["one", "one"]


async def test_shared_pools_do_each_rollouts_work_as_its_own() -> None:
    executor, pool = ThreadPoolExecutor(1), ThreadPool(1)
    with executor, pool:
        # The executor's only thread is started in the first rollout, and later serves others and none.
        for name in ("one", "two"):
            with rollout_open(make(name)):
                assert executor.submit(whose).result() == name
                assert list(executor.map(whose, [1, 2])) == [name, name]
                loop = asyncio.get_running_loop()
                assert await loop.run_in_executor(executor, whose) == name
                assert await loop.run_in_executor(None, whose) == name
                assert pool.apply(whose) == name
                assert pool.map(whose, [1, 2]) == [name, name]
                assert pool.starmap(whose, [(1,)]) == [name]
                assert (
                    list(pool.imap(whose, [1])) == list(pool.imap_unordered(whose, [1])) == [name]
                )
        with rollout_open(make("three")):
            outside = contextvars.Context()
            assert outside.run(lambda: executor.submit(whose).result()) is None
            assert outside.run(lambda: pool.apply(whose)) is None
    with rollout_open(make("four")), ThreadPool(1) as made_inside:
        assert made_inside.apply(whose) == "four"
        assert contextvars.Context().run(lambda: made_inside.apply(whose)) is None


def test_only_our_variables_are_carried() -> None:
    with rollout_open(make("one")), decimal.localcontext(prec=3):
        assert by_thread(lambda: str(decimal.getcontext().prec)) == "28"


def test_a_thread_that_outlives_its_rollout_is_of_none() -> None:
    context, go = make("one"), threading.Event()
    found: list[str | None] = []
    with rollout_open(context):
        thread = threading.Thread(target=lambda: (go.wait(), found.append(whose())))
        thread.start()
    context.close()
    go.set()
    thread.join()
    assert found == [None]


def test_a_reward_function_hands_over_that_it_judges() -> None:
    with reward_open():
        assert by_thread(lambda: str(is_judging())) == "True"
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(is_judging).result()
            assert not contextvars.Context().run(lambda: pool.submit(is_judging).result())
    assert not is_judging()


def test_nothing_is_hooked_while_no_rollout_is_open() -> None:
    def found() -> list[object]:
        return [owner.__dict__.get(name) for owner, name in HOOKED]

    before = found()
    with ExitStack() as first, ExitStack() as second:
        first.enter_context(carrying())
        second.enter_context(carrying())
        hooked = found()
        assert all(one is not other for one, other in zip(hooked, before, strict=True))
        first.close()
        assert found() == hooked  # another rollout is still open
        second.close()
        assert found() == before


def test_a_thread_that_cannot_start_raises_as_ever() -> None:
    with rollout_open(make("one")):
        thread = threading.Thread(target=whose)
        thread.start()
        thread.join()
        with pytest.raises(RuntimeError, match="threads can only be started once"):
            thread.start()


# -- child processes -------------------------------------------------------------------------------


def test_a_child_process_gets_the_attempts_url_and_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "intra.net, .local")
    monkeypatch.setenv("no_proxy", "other")
    monkeypatch.delenv("ANTHROPIC_AUTH_TOKEN", raising=False)
    context = rollout_context(server_url="http://10.0.0.7:8787", key="k")
    attempt = "http://10.0.0.7:8787/rollouts/r1/attempts/a1"
    expected = {
        "LIGHTNINGRL_ATTEMPT_URL": f"{attempt}/v1",
        "OPENAI_BASE_URL": f"{attempt}/v1",
        "OPENAI_API_BASE": f"{attempt}/v1",
        "ANTHROPIC_BASE_URL": attempt,
        "ANTHROPIC_API_URL": attempt,
        "ANTHROPIC_API_BASE": attempt,
        "OPENAI_API_KEY": "k",
        "ANTHROPIC_API_KEY": "k",
        "NO_PROXY": "intra.net,.local,other,10.0.0.7",
        "no_proxy": "intra.net,.local,other,10.0.0.7",
    }
    with rollout_open(context):
        assert lightningrl.environment() == expected
        # A token is sent beside the key, and would be taken first.
        monkeypatch.setenv("ANTHROPIC_AUTH_TOKEN", "users")
        assert lightningrl.environment() == {**expected, "ANTHROPIC_AUTH_TOKEN": "k"}
    assert lightningrl.environment() == {}
    with rollout_open(rollout_context(has_gateway=False)):
        assert lightningrl.environment() == {}
    assert "LIGHTNINGRL_ATTEMPT_URL" not in os.environ
