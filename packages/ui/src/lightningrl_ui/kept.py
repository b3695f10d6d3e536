"""Answers that take long: each is made once, in a process of its own, and kept.

Invariant: whoever asks is answered within about `PATIENCE_SECONDS`, with the answer or with nothing yet, and so are all
other screens meanwhile; one answer is made at a time, so that a page with many readers takes one process.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from collections.abc import Callable, Hashable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from lightningrl.errors import LightningError, RunError

PATIENCE_SECONDS = 0.15
"""How long one who asks waits for an answer that is being made."""

MOST = 4
"""Answers that are kept, the last asked for."""

_NICENESS = 10
"""Of the process, so that a run on the same machine goes before."""

_spawning = multiprocessing.get_context("spawn")


class Kept:
    """Makes answers and keeps the newest."""

    def __init__(self) -> None:
        self._tasks: dict[Hashable, asyncio.Task[Any]] = {}
        self._turn = asyncio.Lock()
        self._process: BaseProcess | None = None

    async def ask(self, key: Hashable, make: Callable[[], Any]) -> Any | None:
        """The answer under a key. `None`: it is being made.

        Args:
            key: whatever changes the answer.
            make: what makes it, a function of a module with its arguments; called once, again only where it failed.

        Raises:
            LightningError: what `make` raised.
            RunError: its process ended without an answer.
        """
        task = self._tasks.pop(key, None) or asyncio.create_task(self._made(make))
        self._tasks[key] = task
        for old in [one for one, other in self._tasks.items() if other.done()][:-MOST]:
            del self._tasks[old]
        await asyncio.wait({task}, timeout=PATIENCE_SECONDS)
        if not task.done():
            return None
        if task.exception() is not None:
            self._tasks.pop(key, None)
        return task.result()

    async def close(self) -> None:
        """Begin no further answer, and end the process that makes one."""
        tasks = list(self._tasks.values())
        self._tasks.clear()
        for one in tasks:
            one.cancel()
        if self._process is not None:
            self._process.terminate()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _made(self, make: Callable[[], Any]) -> Any:
        async with self._turn:
            try:
                found = await asyncio.to_thread(self._exchange, make)
            finally:
                self._process = None
        if isinstance(found, LightningError):
            raise found
        return found

    def _exchange(self, make: Callable[[], Any]) -> Any:
        """Start the process and wait for what it answers."""
        answers, answering = _spawning.Pipe(duplex=False)
        with answers:
            process = _spawning.Process(target=_answer, args=(answering, make), daemon=True)
            process.start()
            self._process = process
            answering.close()
            try:
                return answers.recv()
            except EOFError:
                return RunError("the process that computes this ended without an answer")
            finally:
                process.join()


def _answer(answering: Connection[Any, Any], make: Callable[[], Any]) -> None:
    """The process: send what `make` returns, or the error of ours that it raised."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of Ctrl-C: the page ends this process itself
    os.nice(_NICENESS)
    try:
        found = make()
    except LightningError as error:
        found = error
    answering.send(found)
