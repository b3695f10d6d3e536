"""Folders of local Rays: those of dead drivers go with the next start, those in use stay."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("forked")

# A driver: it says where its folder is, and lives until its input ends.
DRIVER = """
import sys
from lightningrl_verl.cluster.session_folder import SessionFolder
own = SessionFolder()
(own.path / "session").mkdir()
(own.path / "session" / "log").write_text("of Ray")
print(own.path, flush=True)
sys.stdin.read()
own.remove()
"""

# Starts one after the other, each amid the others' of the processes beside it.
MANY = """
import sys
from lightningrl_verl.cluster.session_folder import SessionFolder
for _ in range(500):
    own = SessionFolder()
    (own.path / "mine").touch(exist_ok=False)
    other = SessionFolder()
    assert (own.path / "mine").exists(), own.path
    own.remove()
    assert not own.path.exists()
    other.remove()
"""


@contextmanager
def driver(parent: Path, program: str = DRIVER) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "TMPDIR": str(parent)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process


def folder_of(process: subprocess.Popen[str]) -> Path:
    assert process.stdout is not None
    return Path(process.stdout.readline().strip())


def test_a_start_removes_the_folders_of_killed_drivers_and_no_others(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").touch()
    (tmp_path / "ray-lrl-link").symlink_to(elsewhere)
    (tmp_path / "ray-lrl-file").touch()
    (tmp_path / "another").mkdir()
    with driver(tmp_path) as alive, driver(tmp_path) as killed:
        of_alive, of_killed = folder_of(alive), folder_of(killed)
        killed.kill()
        assert killed.wait() == -signal.SIGKILL
        assert of_killed.exists()
        with driver(tmp_path) as later:
            of_later = folder_of(later)
            assert not of_killed.exists()
            for one in (of_alive, of_later):
                assert (one / "session" / "log").read_text() == "of Ray"
    assert {one.name for one in tmp_path.iterdir()} == {
        "elsewhere",
        "ray-lrl-link",
        "ray-lrl-file",
        "another",
    }
    assert (elsewhere / "kept").exists()


def test_starts_beside_each_other_never_remove_what_is_in_use(tmp_path: Path) -> None:
    with ExitStack() as stack:
        processes = [stack.enter_context(driver(tmp_path, MANY)) for _ in range(4)]
        assert [process.wait() for process in processes] == [0] * 4
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_the_folder_of_another_user_is_left_alone(tmp_path: Path) -> None:
    foreign = tmp_path / "ray-lrl-foreign"
    foreign.mkdir()
    os.chown(foreign, 65534, 65534)
    with driver(tmp_path) as process:
        folder_of(process)
    assert foreign.exists()
