"""The event loop of our own servers, and of runners that ask for it: uvloop's where it is installed; asyncio's own, run within itself."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Uvloop's loop, else `None`, asyncio's own; without uvloop a request costs 0.02 ms more."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def allow_nesting(loop: asyncio.AbstractEventLoop) -> None:
    """Let code within a callback run `loop` itself, as nest_asyncio does, whatever else is due at that time.

    Such a run takes what is due from the run around it, which then finds less than it had counted (CPython 3.11 to
    3.14, `BaseEventLoop._run_once`), and would raise IndexError. Does nothing to loops of another kind.
    """
    ready: Any = getattr(loop, "_ready", None)
    if isinstance(ready, deque) and not isinstance(ready, _Due):
        loop._ready = _Due(loop, ready)  # pyright: ignore[reportAttributeAccessIssue] - asyncio's own


class _Due(deque[asyncio.Handle]):
    """The callbacks that are due. Invariant: there is always one to take, if one that does nothing."""

    def __init__(self, loop: asyncio.AbstractEventLoop, due: deque[asyncio.Handle]) -> None:
        super().__init__(due)
        self._nothing = asyncio.Handle(lambda: None, (), loop)
        self._nothing.cancel()

    def popleft(self) -> asyncio.Handle:
        return super().popleft() if self else self._nothing
