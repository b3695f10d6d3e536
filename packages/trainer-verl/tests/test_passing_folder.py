"""Folders of processes: those of dead ones go with the next start, those in use stay."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from lightningrl_verl.machine.passing_folder import PassingFolder

pytestmark = pytest.mark.usefixtures("forked")

# A driver: it says where its folder is, and lives until its input ends.
DRIVER = """
import sys
from pathlib import Path
from lightningrl_verl.machine.passing_folder import PassingFolder
own = PassingFolder(Path(sys.argv[1]), "ours-")
(own.path / "session").mkdir()
(own.path / "session" / "log").write_text("of it")
print(own.path, flush=True)
sys.stdin.read()
own.close()
"""

# Starts one after the other, each amid the others' of the processes beside it.
MANY = """
import sys
from pathlib import Path
from lightningrl_verl.machine.passing_folder import PassingFolder
for _ in range(500):
    own = PassingFolder(Path(sys.argv[1]), "ours-")
    (own.path / "mine").touch(exist_ok=False)
    other = PassingFolder(Path(sys.argv[1]), "ours-")
    assert (own.path / "mine").exists(), own.path
    own.close()
    assert not own.path.exists()
    other.close()
"""


@contextmanager
def driver(parent: Path, program: str = DRIVER) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", program, str(parent)],
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
    (tmp_path / "ours-link").symlink_to(elsewhere)
    (tmp_path / "ours-file").touch()
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
                assert (one / "session" / "log").read_text() == "of it"
    assert {one.name for one in tmp_path.iterdir()} == {
        "elsewhere",
        "ours-link",
        "ours-file",
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
    foreign = tmp_path / "ours-foreign"
    foreign.mkdir()
    os.chown(foreign, 65534, 65534)
    with driver(tmp_path) as process:
        folder_of(process)
    assert foreign.exists()


def test_where_folders_can_not_be_locked_each_process_removes_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    left = tmp_path / "ours-left"
    left.mkdir()
    monkeypatch.setattr(fcntl, "flock", refuse)
    own = PassingFolder(tmp_path, "ours-")
    assert own.path.is_dir()
    assert left.is_dir()
    own.close()
    assert list(tmp_path.iterdir()) == [left]
