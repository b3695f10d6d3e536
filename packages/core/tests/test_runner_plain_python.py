"""What runs under plain `python` runs in a runner: loops, and alarms, or it is said what to do."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvloop

from lightningrl.machine.event_loop import allow_nesting
from lightningrl.recipe import parse_recipe
from lightningrl.runner.alarms import alarms, refuse_alarms
from lightningrl.runner.process import _loop_factory
from lightningrl.runner.threads import run_in_thread


async def answer() -> int:
    return 42


def test_agents_run_on_asyncios_own_loop_unless_asked_otherwise() -> None:
    plain = {"name": "run", "agent": "m:f"}
    assert _loop_factory(parse_recipe(plain)) is None
    asked = parse_recipe({**plain, "runner": {"event_loop": "uvloop"}})
    assert _loop_factory(asked) is uvloop.new_event_loop


def test_an_agent_may_run_its_loop_within_itself_beside_others() -> None:
    """As nest_asyncio does: a run within a callback does what is due, which the run around it had counted."""
    loop: Any = asyncio.new_event_loop()
    allow_nesting(loop)
    ran: list[str] = []

    def agent() -> None:
        loop._run_once()
        ran.append("agent")

    loop.call_soon(agent)
    loop.call_soon(ran.append, "another's")
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert ran == ["another's", "agent"]
    assert loop.run_until_complete(answer()) == 42
    loop.close()


def test_other_loops_are_left_alone() -> None:
    loop = uvloop.new_event_loop()
    allow_nesting(loop)
    assert loop.run_until_complete(answer()) == 42
    loop.close()


async def test_a_synchronous_agents_thread_has_a_loop() -> None:
    def agent() -> tuple[int, int, bool]:
        loop = asyncio.get_event_loop()
        first = loop.run_until_complete(answer())
        return first, asyncio.run(answer()), loop.is_closed()

    assert await run_in_thread(agent) == (42, 42, False)


async def test_the_threads_loop_is_closed_with_it() -> None:
    loop = await run_in_thread(asyncio.get_event_loop)
    assert loop.is_closed()


@pytest.fixture
def refused() -> Iterator[None]:
    before = signal.signal, signal.alarm, signal.setitimer
    patches = refuse_alarms()
    yield
    patches.undo()
    assert (signal.signal, signal.alarm, signal.setitimer) == before


def with_alarm() -> float:
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    return 1.0


@pytest.mark.parametrize(
    ("set_one", "name"),
    [
        (with_alarm, "signal.signal()"),
        (lambda: signal.alarm(1), "signal.alarm()"),
        (lambda: signal.setitimer(signal.ITIMER_REAL, 1.0), "signal.setitimer()"),
    ],
)
async def test_an_alarm_in_a_thread_is_refused_and_known_though_it_is_caught(
    refused: None, set_one: Callable[[], object], name: str
) -> None:
    def caught() -> float:
        with pytest.raises(ValueError, match="Write the function as `async def`"):
            set_one()
        return 0.0

    with alarms() as asked:
        assert await run_in_thread(caught) == 0.0
    assert asked == [name]


async def test_what_is_no_alarm_is_as_ever(refused: None) -> None:
    def harmless() -> None:
        with pytest.raises(ValueError, match=r"main interpreter$"):
            signal.signal(signal.SIGUSR1, signal.SIG_DFL)  # Python's own words
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)

    with alarms() as asked:
        await run_in_thread(harmless)
        kept = signal.signal(signal.SIGVTALRM, signal.SIG_IGN)  # the main thread
        signal.signal(signal.SIGVTALRM, kept)
    assert asked == []
