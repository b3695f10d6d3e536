"""Real runs of the command line."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from user_project import Project, make_project


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where tiny policies are kept, so that they are built once per session."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def project(tmp_path: Path, cache: Path) -> Iterator[Project]:
    """A project of the test's own; nothing that it started is left when the test ends."""
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    yield make_project(tmp_path, cache)
    for child in psutil.Process().children(recursive=True):
        if child.pid not in before:
            child.send_signal(signal.SIGKILL)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Project:
    """A project whose run is finished."""
    project = make_project(tmp_path_factory.mktemp("trained"), cache)
    done = project.cli("train", str(project.recipe()))
    assert done.returncode == 0, done.stdout + done.stderr
    return project
