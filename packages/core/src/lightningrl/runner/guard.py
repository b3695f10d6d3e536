"""Ends a worker process whose event loop is blocked by the user's code.

Invariant: an async agent that blocks (`time.sleep`, an endless loop) holds up its process for a bounded
time: its leases run out meanwhile, and the supervisor starts another process.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import sys
import threading

_log = logging.getLogger(__name__)

EXIT_REPLACE = 75
"""Exit status of a worker that wants to be replaced by a fresh process at once. (`EX_TEMPFAIL`)"""


class LoopGuard:
    """A thread that asks the loop for a sign of life."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, seconds: float) -> None:
        self._loop = loop
        self._seconds = seconds
        self._alive = threading.Event()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="lightningrl-guard", daemon=True)

    def start(self) -> None:
        """Watch from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Watch no more."""
        self._stopped.set()

    def _watch(self) -> None:
        while not self._stopped.is_set():
            self._alive.clear()
            try:
                self._loop.call_soon_threadsafe(self._alive.set)
            except RuntimeError:
                return  # the loop was closed: the process is ending by itself
            if self._alive.wait(self._seconds):
                self._stopped.wait(self._seconds)
            elif not self._stopped.is_set():
                self._end_process()

    def _end_process(self) -> None:
        _log.error(
            "the event loop has been blocked for %.0f s, so this process ends and is replaced. An async "
            "agent must not block; make the function synchronous (it then gets a thread) or await",
            self._seconds,
        )
        faulthandler.dump_traceback(sys.stderr, all_threads=True)
        os._exit(EXIT_REPLACE)
