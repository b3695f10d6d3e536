"""Server processes under measurement: started, waited for, ended with everything below them."""

from __future__ import annotations

import contextlib
import http.client
import socket
import subprocess
import time
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path

import psutil

START_SECONDS = 120.0
_END_SECONDS = 10.0


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@contextlib.contextmanager
def running(
    command: Sequence[str], *, url: str, health: str, log: Path, environment: Mapping[str, str]
) -> Generator[int]:
    """Run a server for the block; the value is its process id.

    Raises:
        RuntimeError: it ended, or did not answer `health` in time; the message has its last lines.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=dict(environment), cwd=log.parent, stdout=output, stderr=output
        )
    try:
        _wait(process, url, health, log)
        yield process.pid
    finally:
        _end(process)


def _wait(process: subprocess.Popen[bytes], url: str, health: str, log: Path) -> None:
    host = url.removeprefix("http://")
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        connection = http.client.HTTPConnection(host, timeout=5)
        try:
            connection.request("GET", health)
            if connection.getresponse().status == 200:
                return
        except OSError:
            time.sleep(0.05)
        finally:
            connection.close()
    tail = log.read_text(encoding="utf-8", errors="replace")[-1500:]
    raise RuntimeError(f"the server {process.args!r} did not start:\n{tail}")


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        below = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        _, alive = psutil.wait_procs(below, timeout=_END_SECONDS)
        for one in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
    try:
        process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
