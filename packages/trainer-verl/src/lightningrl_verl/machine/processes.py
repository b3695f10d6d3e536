"""The processes that a run starts on this machine: the server and the runners.

Invariants:
- A child exits when its parent's end of a pipe closes, so `kill -9` of the trainer leaves none.
- A child that dies is started again; one that says that this is pointless, or that keeps dying,
  ends the run with its last lines.
- Children are in process groups of their own: Ctrl-C reaches the trainer alone, which ends them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from lightningrl.errors import RunError

_USELESS = 2
"""Exit code by which our commands say that the user's settings are wrong."""
_RESTARTS = 6
"""Deaths in a row, each soon after its start, after which a child is given up."""
_SOON_SECONDS = 60.0
_LONGEST_PAUSE_SECONDS = 8.0
"""With the shorter ones before it, long enough for a former server to let go of the store."""


class Child:
    """One child process, kept alive by a thread until the `async with` block ends."""

    def __init__(
        self,
        name: str,
        argv: Callable[[int], Sequence[str]],
        *,
        log: Path,
        environment: Mapping[str, str],
        on_line: Callable[[str], None] | None = None,
        stop_seconds: float = 15.0,
    ) -> None:
        """Prepare a child; nothing is started yet.

        Args:
            name: for messages.
            argv: the command, asked for at each start, given the number of the pipe whose closing
                tells the child to exit.
            log: file that its output is appended to.
            environment: variables added to this process's own.
            on_line: called in the event loop with each line of its standard output, which is then
                not logged.
            stop_seconds: time between SIGTERM and SIGKILL.
        """
        self.name = name
        self._argv = argv
        self._log = log
        self._environment = environment
        self._on_line = on_line
        self._stop_seconds = stop_seconds
        self._loop = asyncio.get_running_loop()
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._keeper = threading.Thread(
            target=self._keep, name=f"keeper of the {name}", daemon=True
        )
        self._pipe: tuple[int, int] = (-1, -1)
        self.failure: asyncio.Future[None] = self._loop.create_future()
        """Fails when the child is given up."""

    async def __aenter__(self) -> Self:
        """Start it."""
        self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End it, with SIGTERM and then SIGKILL; being cancelled does not cut this short."""
        await asyncio.shield(asyncio.to_thread(self.stop))

    def start(self) -> None:
        """Start it, and again whenever it ends."""
        self._pipe = os.pipe()
        self._keeper.start()

    def stop(self) -> None:
        """End it, with SIGTERM and then SIGKILL, and wait for that; to be called once, if it was started."""
        with self._lock:
            self._stopping.set()
            process = self._process
        if process is not None:
            _signal_group(process, signal.SIGTERM)
            try:
                process.wait(self._stop_seconds)
            except subprocess.TimeoutExpired:
                _signal_group(process, signal.SIGKILL)
        self._keeper.join()
        for end in self._pipe:
            os.close(end)

    def _keep(self) -> None:
        """Start it again and again; the only place where its errors are caught."""
        try:
            self._restart_until_given_up()
        except Exception as error:  # noqa: BLE001 - whatever ends the keeper ends the run
            self._fail(f"the {self.name} can't be kept running: {error!r}")

    def _restart_until_given_up(self) -> None:
        deaths = 0
        while True:
            started = time.monotonic()
            with self._lock:
                if self._stopping.is_set():
                    return
                self._process = process = self._start()
            self._read_lines(process)
            code = process.wait()
            if self._stopping.is_set():
                return
            deaths = deaths + 1 if time.monotonic() - started < _SOON_SECONDS else 1
            if code == _USELESS or deaths >= _RESTARTS:
                self._fail(
                    f"the {self.name} ended with exit code {code}, {deaths} time(s) in a row. Its"
                    f" last lines, from {self._log}:\n{last_lines(self._log)}"
                )
                return
            if self._stopping.wait(min(0.5 * 2 ** (deaths - 1), _LONGEST_PAUSE_SECONDS)):
                return

    def _start(self) -> subprocess.Popen[bytes]:
        reading_end = self._pipe[0]
        with self._log.open("ab") as log:
            return subprocess.Popen(
                self._argv(reading_end),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if self._on_line is not None else log,
                stderr=log,
                env={**os.environ, **self._environment},
                pass_fds=(reading_end,),
                start_new_session=True,
            )

    def _read_lines(self, process: subprocess.Popen[bytes]) -> None:
        if self._on_line is None or process.stdout is None:
            return
        with process.stdout:
            for line in process.stdout:
                text = line.decode(errors="replace").rstrip("\n")
                self._in_loop(lambda said=text: self._on_line(said) if self._on_line else None)

    def _fail(self, message: str) -> None:
        def set_failure() -> None:
            if not self.failure.done():
                self.failure.set_exception(RunError(message))

        self._in_loop(set_failure)

    def _in_loop(self, function: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody listens
            self._loop.call_soon_threadsafe(function)


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


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
