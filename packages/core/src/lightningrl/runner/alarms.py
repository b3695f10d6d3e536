"""Alarms in code that a runner runs in a thread, where they would not reach it.

Invariant: in such a thread an alarm is never set; whoever sets one gets an error that says what to do, and where the
code catches it, it is still known afterwards.
"""

from __future__ import annotations

import functools
import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from lightningrl.capture.patching import Patches

REMEDY = (
    "an alarm (signal.SIGALRM) only works in the main thread, and plain functions run in a thread of their own. Write the"
    " function as `async def`: it then runs in the main thread. Or switch the library's own time limit off (of math_verify:"
    " parsing_timeout=None, timeout_seconds=None)"
)
_ALARMS = frozenset(
    getattr(signal, name) for name in ("SIGALRM", "SIGVTALRM", "SIGPROF") if hasattr(signal, name)
)
_asked: ContextVar[list[str] | None] = ContextVar("lightningrl_alarms", default=None)


@contextmanager
def alarms() -> Generator[list[str]]:
    """The calls by which code within tried to set an alarm in another thread than the main one."""
    asked: list[str] = []
    token = _asked.set(asked)
    try:
        yield asked
    finally:
        _asked.reset(token)


def refuse_alarms() -> Patches:
    """Refuse them in this process from now on, until what is returned is undone."""
    patches = Patches()
    for name, is_alarm in (
        ("signal", lambda number, *_: number in _ALARMS),
        ("alarm", lambda seconds, *_: seconds != 0),
        ("setitimer", lambda _, seconds, *__: seconds != 0),
    ):
        if hasattr(signal, name):  # Windows has no alarms
            patches.replace(signal, name, functools.partial(_refusing, name, is_alarm))
    return patches


def _refusing(
    name: str, is_alarm: Callable[..., bool], original: Callable[..., Any]
) -> Callable[..., Any]:
    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        asked = _asked.get()
        in_main = threading.current_thread() is threading.main_thread()
        if asked is None or in_main or not is_alarm(*args, *kwargs.values()):
            return original(*args, **kwargs)
        asked.append(f"signal.{name}()")
        # What Python itself raises: libraries look for it.
        raise ValueError(f"signal only works in main thread of the main interpreter: {REMEDY}")

    return call
