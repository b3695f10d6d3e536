"""Real processes of ours that start with torch and verl loaded: forked from one that loaded them once.

A trainer spends 12 of the 15 seconds of a small run on imports, and the tests start dozens. Such a process is a
process of its own in all that tests look at: id, signals, exit status, files, children. That the command itself
starts so from nothing is what tests without it show (`test_train.py`, `test_bad_input.py`).
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from types import TracebackType
from typing import Self

_FORKING = multiprocessing.get_context("forkserver")
_FORKING.set_forkserver_preload(["preloaded"])

_HERE = str(Path(__file__).parent)


def start_server() -> None:
    """Start the process that others are forked from, if it isn't there; it loads while the test goes on."""
    before = os.environ.get("PYTHONPATH")
    # Python 3.11 gives it no other way to find `preloaded`.
    os.environ["PYTHONPATH"] = os.pathsep.join([_HERE, *([before] if before else [])])
    try:
        ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


CLI = "from lightningrl.cli import main; main()"


class WarmProcess:
    """A Python program in such a process, with what of `subprocess.Popen` tests use."""

    def __init__(
        self,
        program: str,
        arguments: Sequence[str],
        *,
        folder: Path,
        environment: Mapping[str, str],
        stdout: Path,
        stderr: Path,
    ) -> None:
        """Start it.

        Args:
            program: its source.
            arguments: `sys.argv` behind the first.
            folder: its working directory.
            environment: the whole of it.
            stdout: file that its output is appended to.
            stderr: the same file, or another.
        """
        start_server()
        self._process = _FORKING.Process(
            target=_run,
            args=(
                program,
                list(arguments),
                str(folder),
                dict(environment),
                str(stdout),
                str(stderr),
            ),
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.wait()

    def poll(self) -> int | None:
        """Its exit status, negative for a signal. `None`: it runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; return its exit status."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(str(self._process), timeout)
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send it SIGKILL."""
        self.send_signal(signal.SIGKILL)


def _run(
    program: str, arguments: list[str], folder: str, environment: dict[str, str], *outputs: str
) -> None:
    """Be the program: in its folder, with its environment and arguments, on its files."""
    assert "verl.workers.engine_workers" in sys.modules, "nothing was loaded before"
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    for number, output in enumerate(outputs, start=1):
        with Path(output).open("ab") as file:
            os.dup2(file.fileno(), number)
    sys.argv = ["-c", *arguments]
    sys.path.insert(0, "")
    exec(compile(program, "<string>", "exec"), {"__name__": "__main__"})
