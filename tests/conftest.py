"""Real runs of the command line."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from user_project import Project, make_project
from warm_process import warm_up


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all of pytest's processes share."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def cache(shared: Path) -> Path:
    """Where tiny policies are kept, so that they are built once."""
    return shared / "cache"


@pytest.fixture
def project(tmp_path: Path, cache: Path) -> Iterator[Project]:
    """A project of the test's own; nothing that it started is left when the test ends."""
    warm_up()
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    project = make_project(tmp_path, cache)
    yield project
    project.end()
    for child in psutil.Process().children(recursive=True):
        if child.pid not in before:
            child.send_signal(signal.SIGKILL)


@pytest.fixture(scope="session")
def trained(shared: Path, cache: Path) -> Project:
    """A project whose run is finished; tests look at it, in several processes at once."""
    folder = shared / "trained"
    folder.mkdir(exist_ok=True)
    with (shared / "trained.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        project = make_project(folder, cache)
        if not (folder / "finished").exists():
            done = project.train(str(project.recipe()))
            assert done.returncode == 0, done.stdout + done.stderr
            (folder / "finished").touch()
    return project
