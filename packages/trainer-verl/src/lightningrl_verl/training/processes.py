"""The processes that a run starts on this machine: the server and the runners.

Invariants:
- A child exits when its parent's end of a pipe closes, so `kill -9` of the trainer leaves none.
- A child that dies is started again; one that keeps dying ends the run with its last lines.
- Children are in process groups of their own: Ctrl-C reaches the trainer alone, which ends them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from lightningrl.errors import RunError

_RESTARTS = 5
"""Deaths within `_WINDOW_SECONDS` after which a child is given up."""
_WINDOW_SECONDS = 60.0
_STOP_SECONDS = 10.0
"""Time that a child has between SIGTERM and SIGKILL."""


class Child:
    """One child process, kept alive.

    `argv` may change between starts (the server's second start is given its first one's port).
    """

    def __init__(
        self,
        name: str,
        argv: Callable[[int], Sequence[str]],
        *,
        log: Path,
        environment: Mapping[str, str],
        on_line: Callable[[str], None] | None = None,
    ) -> None:
        """Prepare a child; nothing is started yet.

        Args:
            name: for messages.
            argv: the command, given the number of the pipe whose closing tells it to exit.
            log: file that its output is appended to.
            environment: variables added to this process's own.
            on_line: called with each line of its standard output instead of logging it.
        """
        self.name = name
        self._argv = argv
        self._log = log
        self._environment = environment
        self._on_line = on_line
        self._deaths: deque[float] = deque()
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._pipe: tuple[int, int] | None = None
        self.failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Fails when the child is given up."""

    @property
    def pid(self) -> int | None:
        """The process id; `None` while it isn't running."""
        return self._process.pid if self._process is not None else None

    async def __aenter__(self) -> Self:
        """Start it."""
        self._pipe = os.pipe()
        await self._start()
        self._keeper = asyncio.create_task(self._keep())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End it: SIGTERM, and SIGKILL for what is left ten seconds later."""
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), _STOP_SECONDS)
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        if self._pipe is not None:
            for end in self._pipe:
                os.close(end)
        if not self.failure.done():
            self.failure.cancel()

    async def _start(self) -> None:
        assert self._pipe is not None
        reading_end = self._pipe[0]
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._argv(reading_end),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE if self._on_line is not None else log,
                stderr=log,
                env={**os.environ, **self._environment},
                pass_fds=(reading_end,),
                start_new_session=True,
            )

    async def _keep(self) -> None:
        while True:
            process = self._process
            assert process is not None
            await self._read_lines(process)
            code = await process.wait()
            now = time.monotonic()
            self._deaths.append(now)
            while self._deaths and now - self._deaths[0] > _WINDOW_SECONDS:
                self._deaths.popleft()
            if len(self._deaths) >= _RESTARTS:
                self.failure.set_exception(
                    RunError(
                        f"the {self.name} ended {_RESTARTS} times within {_WINDOW_SECONDS:.0f} s"
                        f" (last exit code {code}). Its last lines, from {self._log}:\n"
                        + last_lines(self._log)
                    )
                )
                return
            await asyncio.sleep(0.2 * len(self._deaths))
            await self._start()

    async def _read_lines(self, process: asyncio.subprocess.Process) -> None:
        if self._on_line is None or process.stdout is None:
            return
        async for line in process.stdout:
            self._on_line(line.decode(errors="replace").rstrip("\n"))


def python_module(module: str, *arguments: str) -> list[str]:
    """The command that runs a module with this interpreter."""
    return [sys.executable, "-m", module, *arguments]


def last_lines(log: Path, count: int = 15) -> str:
    """The end of a log file, indented; says so where there is none."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    return "\n".join(f"    {line}" for line in lines[-count:]) or "    (nothing)"
