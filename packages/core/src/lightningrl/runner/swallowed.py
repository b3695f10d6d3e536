"""Errors that a reward function catches, so that a 0 which stands for one can be told from a 0 that was earned.

Invariant: it only listens. The function runs once, as it is; what code of another file catches is not looked at.

It listens by `sys.settrace`, which costs a call of ours for each call that the function makes: only the first rewards of
a process are listened to, and none where a debugger or a coverage tool traces.
"""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import count
from types import CodeType, FrameType
from typing import Any

from lightningrl.capture.context import describe_error

MOST = 32
"""Rewards of a process that are listened to."""
_LONGEST = 200
"""Characters that are told of an error's first sentence."""


@dataclass
class _Reward:
    """The reward that is computed now."""

    file: str | None = None
    """That its function is written in. `None`: it is not listened to (yet)."""
    errors: dict[int, str] = field(default_factory=dict[int, str])
    """An error's identity -> what it says, and where it was seen last."""


class _Depth(threading.local):
    """How many functions of this thread are listened to now."""

    count = 0


_now: ContextVar[_Reward | None] = ContextVar("lightningrl_reward", default=None)
_depth = _Depth()


@contextmanager
def swallowed() -> Generator[list[str]]:
    """The errors that a `heard` function catches within; they are there when the block has ended."""
    reward = _Reward()
    told: list[str] = []
    token = _now.set(reward)
    try:
        yield told
    finally:
        _now.reset(token)
        told += reward.errors.values()


def heard(function: Callable[..., Any], *, most: int = MOST) -> Callable[..., Any]:
    """The function, listened to in its first `most` calls; itself where it is not written in Python."""
    # The method itself is looked at, as it is found on the type.
    call = function if inspect.isroutine(function) else getattr(type(function), "__call__", None)  # noqa: B004
    code = None if call is None else getattr(inspect.unwrap(call), "__code__", None)
    if not isinstance(code, CodeType):
        return function
    file, turn = code.co_filename, count()

    async def awaited(*args: Any, **kwargs: Any) -> Any:
        with _listening(file, next(turn) < most):
            return await function(*args, **kwargs)

    def called(*args: Any, **kwargs: Any) -> Any:
        with _listening(file, next(turn) < most):
            return function(*args, **kwargs)

    return awaited if inspect.iscoroutinefunction(call) else called


@contextmanager
def _listening(file: str, due: bool) -> Generator[None]:
    """Trace this thread, unless somebody else does."""
    reward = _now.get()
    if not due or reward is None or (sys.gettrace() is not None and not _depth.count):
        yield
        return
    reward.file = file
    _depth.count += 1
    sys.settrace(_on_call)
    try:
        yield
    finally:
        _depth.count -= 1
        if not _depth.count:
            sys.settrace(None)


def _on_call(frame: FrameType, _event: str, _value: Any) -> Any:
    reward = _now.get()
    if reward is None or frame.f_code.co_filename != reward.file:
        return None
    frame.f_trace_lines = False
    return _on_exception


def _on_exception(frame: FrameType, event: str, value: Any) -> Any:
    reward = _now.get()
    if event == "exception" and reward is not None:
        error = value[1]
        # Each frame that an error passes tells of it; the last one is where it was caught.
        if isinstance(error, Exception) and not isinstance(
            error, StopIteration | StopAsyncIteration
        ):
            text = describe_error(error).split(". ")[0][:_LONGEST]
            reward.errors[id(error)] = f"{text}, in line {frame.f_lineno} ({frame.f_code.co_name})"
    return _on_exception
