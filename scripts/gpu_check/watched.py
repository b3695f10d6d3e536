"""Runs a program of many processes, and says all the time where it stands.

Invariant: it ends. A phase that lasts too long is broken off, with the stack of every Python thread in the
logs; what was printed and logged until then is in the folder, whatever becomes of this process.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
from report import CheckFailed

_PAUSE_SECONDS = 0.5
_STACK_SECONDS = 10.0
"""Time to write the stacks before the rest is killed."""
_LAST_LINES = 25

PYTHON = {"PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}
"""What is printed is in the file at once, and SIGABRT prints the stacks of all threads."""


def watch(
    command: Sequence[str],
    *,
    output: Path,
    phases: Path,
    logs: Path,
    seconds: float,
    python_path: Path,
) -> None:
    """Run a command to its end, and repeat what it says on standard error.

    Args:
        command: what to run.
        output: file that it prints to.
        phases: file in which it writes a line as each phase begins.
        logs: folder of its processes' logs.
        seconds: longest time of one phase; the first begins with the command.
        python_path: folder of modules that it finds beside its own.

    Raises:
        CheckFailed: it failed, or a phase lasted too long.
    """
    path = os.pathsep.join(filter(None, (str(python_path), os.environ.get("PYTHONPATH"))))
    with output.open("wb") as stream:
        running = psutil.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={**os.environ, **PYTHON, "PYTHONPATH": path},
        )
    printed, begun = _Tail(output), _Tail(phases)
    phase, since = "start", time.monotonic()
    try:
        while running.poll() is None:
            for line in (*printed.lines(), *begun.lines()):
                say(line)
            if begun.phase not in ("", phase):
                phase, since = begun.phase, time.monotonic()
            if time.monotonic() - since > seconds:
                end(running, with_stacks=True)
                _show_ends(output, logs)
                raise CheckFailed(
                    f"the phase {phase!r} lasted longer than {seconds:g} s; stacks and logs: {output.parent}"
                )
            time.sleep(_PAUSE_SECONDS)
    finally:
        end(running)
    if running.returncode != 0:
        _show_ends(output, logs)
        raise CheckFailed(
            f"{' '.join(command)} ended with {running.returncode}; see {output.parent}"
        )


def end(process: psutil.Process, *, with_stacks: bool = False) -> None:
    """End a process and all that it has started; with their stacks first, if asked."""
    try:
        family = [*process.children(recursive=True), process]
    except psutil.NoSuchProcess:
        return
    if with_stacks:
        _signal(family, signal.SIGABRT)
        _, family = psutil.wait_procs(family, timeout=_STACK_SECONDS)
    _signal(family, signal.SIGKILL)
    psutil.wait_procs(family)


def say(line: str) -> None:
    """Print a line on standard error at once."""
    print(f"  {line}", file=sys.stderr, flush=True)


def show_end(file: Path) -> None:
    """Print the last lines of a file."""
    say(f"--- the end of {file}")
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines()[-_LAST_LINES:]:
        say(line)


def _signal(family: Sequence[psutil.Process], number: signal.Signals) -> None:
    for one in family:
        try:
            one.send_signal(number)
        except psutil.NoSuchProcess:
            continue


def _show_ends(output: Path, logs: Path) -> None:
    for file in (output, *sorted(logs.glob("*.log"))):
        show_end(file)


class _Tail:
    """Lines of a file that grows, and may not be there yet."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._read = 0
        self.phase = ""
        """The last line that says more than how many rollouts have ended."""

    def lines(self) -> Iterator[str]:
        """Those that were completed since the last call."""
        if not self._file.exists():
            return
        with self._file.open("rb") as stream:
            stream.seek(self._read)
            for line in stream:
                if not line.endswith(b"\n"):
                    return
                self._read += len(line)
                text = line.decode(errors="replace").rstrip()
                if ", rollouts " not in text:
                    self.phase = text
                yield text
