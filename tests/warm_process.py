"""Real processes of ours that start with torch and verl loaded: forked from one that loaded them once.

A trainer spends 12 of the 15 seconds of a small run on imports, and the tests start dozens. Such a process is a
process of its own in all that tests look at: id, signals, exit status, files, children. That the command itself
starts so from nothing is what tests without it show: `test_chatter.py`, and those of `test_ray.py` that are long.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
from warm_children import ROOM_FOR_COMMAND

CLI = "from lightningrl.cli import main; main()"

_SERVER = Path(__file__).with_name("warm_server.py")
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    # As `lightningrl train` does before it loads torch.
    "OMP_WAIT_POLICY": "PASSIVE",
}


def warm_up() -> None:
    """Have the server start, if it did not; it loads while the test goes on."""
    _connect().close()


def _connect() -> socket.socket:
    """A connection to the one server that all of pytest's processes share."""
    session = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
    path = Path(tempfile.gettempdir()) / f"lightningrl-warm-{session[:12]}"
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with contextlib.suppress(OSError):
            return _connected(path)
        path.unlink(missing_ok=True)
        # Of xdist's processes the parent outlives all.
        served = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
        command = [sys.executable, str(_SERVER), str(path), str(served), ROOM_FOR_COMMAND]
        subprocess.run(command, env={**os.environ, **_ENVIRONMENT}, check=True)
        while True:
            with contextlib.suppress(OSError):
                return _connected(path)
            time.sleep(0.02)


def _connected(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(path))
    except OSError:
        connection.close()
        raise
    return connection


class WarmProcess:
    """A Python program in such a process, with what of `subprocess.Popen` tests use."""

    def __init__(
        self,
        program: str,
        arguments: Sequence[str],
        *,
        folder: Path,
        environment: Mapping[str, str],
        outputs: tuple[Path, Path],
    ) -> None:
        """Start it.

        Args:
            program: its source.
            arguments: `sys.argv` behind the first.
            folder: its working directory.
            environment: the whole of it.
            outputs: files that its output and its errors are appended to; they may be one.
        """
        request = {
            "program": program,
            "arguments": list(arguments),
            "folder": str(folder),
            "environment": dict(environment),
            "outputs": [str(one) for one in outputs],
        }
        self._connection = _connect()
        self._connection.sendall(json.dumps(request).encode() + b"\n")
        self._said = b""
        self._code: int | None = None
        self.pid = int(self._line(None))

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
        with contextlib.suppress(TimeoutError):
            return self._ended(0.001)
        return None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; return its exit status."""
        try:
            return self._ended(timeout)
        except TimeoutError:
            assert timeout is not None
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout) from None

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it runs."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Send it SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def kill_all(self) -> None:
        """End it and all that it has started."""
        with contextlib.suppress(psutil.NoSuchProcess):
            family = psutil.Process(self.pid).children(recursive=True)
            self.kill()
            for one in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
        self._connection.close()

    def _ended(self, timeout: float | None) -> int:
        if self._code is None:
            self._code = int(self._line(timeout))
            self._connection.close()
        return self._code

    def _line(self, timeout: float | None) -> bytes:
        """The server's next line."""
        self._connection.settimeout(timeout)
        while b"\n" not in self._said:
            part = self._connection.recv(64)
            if not part:
                raise RuntimeError("the warm server has ended")
            self._said += part
        line, _, self._said = self._said.partition(b"\n")
        return line
