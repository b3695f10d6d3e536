"""Work that is handed to a thread inside a rollout carries the rollout, its step and its agent.

Invariant: only threads that are started, and work that is handed to a pool, inside a rollout are touched, and no
other variable of Python's contexts is carried. Nothing is hooked while no rollout is open. A pool's threads
belong to no rollout, whoever starts them: each piece of work belongs to the rollout that handed it over.
"""

from __future__ import annotations

import functools
import multiprocessing.pool
import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from lightningrl.capture.context import (
    RolloutContext,
    carried,
    current,
    in_rollout,
    is_judging,
    judging,
    nowhere,
)
from lightningrl.capture.patching import Patches

_lock = threading.Lock()
_patches = Patches()
_open = 0
"""Blocks under way that are open to carry."""


@contextmanager
def carrying() -> Generator[None]:
    """Hook threads and pools within the block; blocks may overlap, the last one undoes it."""
    global _open
    with _lock:
        _open += 1
        if _open == 1:
            _hook()
    try:
        yield
    finally:
        with _lock:
            _open -= 1
            if _open == 0:
                _patches.undo()


def _is_carried() -> bool:
    return current() is not None or is_judging()


def _hook() -> None:
    _patches.replace(threading.Thread, "start", _start)
    _patches.replace(ThreadPoolExecutor, "submit", _submit)  # of `map` and `run_in_executor` too
    pool = multiprocessing.pool.ThreadPool
    _patches.replace(pool, "__init__", _make_pool)
    for name in ("apply_async", "_map_async", "imap", "imap_unordered"):
        _patches.replace(pool, name, _submit)


def _start(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def start(self: threading.Thread) -> Any:
        # A thread that was started is refused by the original.
        if not _is_carried() or self.ident is not None:
            return original(self)
        run = carried(self.run)

        def run_once() -> None:
            del self.run  # the attribute below; the method is there again
            run()

        self.run = run_once
        try:
            return original(self)
        except BaseException:
            vars(self).pop("run", None)
            raise

    return start


def _submit(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def submit(self: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        if not _is_carried():
            return original(self, function, *args, **kwargs)
        work = carried(function)
        with nowhere():  # the pool's thread may start here, and outlives the rollout
            return original(self, work, *args, **kwargs)

    return submit


def _make_pool(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def make(*args: Any, **kwargs: Any) -> Any:
        with nowhere():
            return original(*args, **kwargs)

    return make


@contextmanager
def rollout_open(context: RolloutContext) -> Generator[None]:
    """Run the block as part of an attempt, and what it hands to threads as well."""
    with in_rollout(context), carrying():
        yield


@contextmanager
def reward_open() -> Generator[None]:
    """Run the block as a reward function, and what it hands to threads as well."""
    with judging(), carrying():
        yield
