"""Where a run's ranks are: in this process, or in a cluster that is started or joined for it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from lightningrl.recipe import Recipe
from lightningrl_verl.worker.ranks import Launcher, ThisProcess


@dataclass(frozen=True)
class Ground:
    """What all learners of a run share."""

    thread: ThreadPoolExecutor
    """Of one worker, on which everything of verl's and of the cluster's is called."""
    launcher: Launcher


async def prepare_ground(recipe: Recipe, stack: contextlib.AsyncExitStack) -> Ground:
    """Start the learners' thread, and the cluster that the recipe asks for.

    Args:
        recipe: the run's.
        stack: ends both.

    Raises:
        ConfigError: the cluster has no room for the ranks, or its address is wrong.
        RunError: it does not start.
    """
    thread = ThreadPoolExecutor(1, thread_name_prefix="verl")
    stack.push_async_callback(in_the_end, thread.shutdown)
    # The thread lives as long as the run, which a local cluster's processes need.
    started = thread.submit(_launcher, recipe)

    def close() -> None:
        # Waits for a start that is under way, and for the end of a call: Ray aborts a process that shuts it down
        # meanwhile. An update of a large model takes minutes, so that its ranks are killed first.
        if not started.cancelled() and started.exception() is None:
            started.result().abandon()
            thread.submit(started.result().close).result()

    stack.push_async_callback(in_the_end, close)
    launcher = await asyncio.wrap_future(started)
    _take_signals_back()
    return Ground(thread, launcher)


def _take_signals_back() -> None:
    """Give the signals that stop a run their handlers again: Ray's core installs one that aborts.

    (`RayLog::InstallFailureSignalHandler`; below Python, which still has its own.)
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        handler = signal.getsignal(number)
        if handler is not None:
            signal.signal(number, handler)
            signal.siginterrupt(number, False)


def _launcher(recipe: Recipe) -> Launcher:
    if recipe.cluster == "none":
        return ThisProcess()
    # Only now: Ray takes seconds to load.
    from lightningrl_verl.cluster.ray_ranks import RayRanks

    return RayRanks(recipe.trainer, recipe.cluster_address, recipe.engine)


async def in_the_end(close: Callable[[], None]) -> None:
    """Close to the end, though the run is being cancelled."""
    await asyncio.shield(asyncio.to_thread(close))
