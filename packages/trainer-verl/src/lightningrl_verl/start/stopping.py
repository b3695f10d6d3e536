"""How a start ends before its work is done: by a signal, or by something that its work needs."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any

from rich.console import Console

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


def cancel_on_signals(task: asyncio.Task[None], console: Console) -> None:
    """Cancel the work at the first signal, and say so; a second one must not cut the cleaning up short."""

    def stop() -> None:
        if not task.cancelling():
            console.print("Stopping. An update that is under way ends first.")
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop)


async def first(work: Coroutine[Any, Any, None], *watches: Coroutine[Any, Any, None]) -> None:
    """Do `work` until it ends or a watch raises; what is left is cancelled and waited for."""
    tasks = [asyncio.ensure_future(one) for one in (work, *watches)]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for one in done:
            one.result()
    finally:
        for one in tasks:
            one.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
