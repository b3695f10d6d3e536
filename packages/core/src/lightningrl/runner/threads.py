"""Runs the user's synchronous code beside the event loop, in threads that can't hold a process up.

Invariant: each call has a daemon thread of its own with a copy of the caller's context and an event loop. A function that
never returns therefore blocks neither other attempts nor the end of the process, as it would in a pool.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, TypeVar
from weakref import WeakSet

R = TypeVar("R")

_abandoned: WeakSet[threading.Thread] = WeakSet()


def abandoned_threads() -> int:
    """How many threads of this process still run a function whose caller was cancelled."""
    return sum(thread.is_alive() for thread in _abandoned)


@contextmanager
def _own_loop() -> Generator[None]:
    """Give the thread a loop, as the main thread of a plain program has one."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        yield
    finally:
        asyncio.set_event_loop(None)
        loop.close()


async def run_in_thread(function: Callable[..., R], *args: Any) -> R:
    """Return what `function(*args)` returns, run in a thread, in this context.

    Cancelling the caller does not stop the function: nothing can. Its result is then dropped, and
    its thread counts as abandoned until it ends.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[R] = loop.create_future()
    context = contextvars.copy_context()

    def settle(result: R | None, error: BaseException | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(result)  # pyright: ignore[reportArgumentType] - None only where R is
        else:
            done.set_exception(error)

    def work() -> None:
        result, error = None, None
        try:
            with _own_loop():
                result = context.run(function, *args)
        except BaseException as raised:  # noqa: BLE001 - carried over to the caller, whatever it is
            # A future refuses StopIteration, since awaiting it would end a generator instead.
            stop = isinstance(raised, StopIteration)
            error = RuntimeError("the function raised StopIteration") if stop else raised
        try:
            loop.call_soon_threadsafe(settle, result, error)
        except RuntimeError:
            # The loop was closed while the function ran: there is nobody left to tell.
            return

    thread = threading.Thread(target=work, name="lightningrl-agent", daemon=True)
    thread.start()
    try:
        return await done
    except asyncio.CancelledError:
        _abandoned.add(thread)
        raise
