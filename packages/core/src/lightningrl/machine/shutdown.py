"""How a process of ours learns that it should end: by a signal, or by the end of its parent.

Invariant: a process whose parent holds the other end of its pipe never outlives it, even one that is
ended by `kill -9`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable


def stop_on_signals(loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> None:
    """Call `stop` in the loop on SIGTERM and SIGINT."""
    for number in (signal.SIGTERM, signal.SIGINT):
        try:
            loop.add_signal_handler(number, stop)
        except NotImplementedError:  # Windows: its loops know no signals, `signal` does
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop))


def stop_with_parent(
    loop: asyncio.AbstractEventLoop, descriptor: int, stop: Callable[[], None]
) -> None:
    """Call `stop` in the loop when the other end of the pipe is closed."""

    def tell() -> None:
        try:
            loop.call_soon_threadsafe(stop)
        except RuntimeError:
            return  # the loop is closed: this process has ended by itself

    when_closed(descriptor, tell)


def when_closed(descriptor: int, call: Callable[[], object]) -> None:
    """Call `call`, in a thread, when the other end of the pipe is closed."""

    def watch() -> None:
        while os.read(descriptor, 1024):
            pass
        call()

    # A thread, because Windows can't wait for a pipe in its event loop.
    threading.Thread(target=watch, name="lightningrl-parent", daemon=True).start()
