"""A folder of one process's own, for as long as it lives; the next one removes what a killed process left.

Invariants: a process holds the lock of its folder, which the kernel lets go of when it ends, however that ends;
a folder is removed only under its lock, and is its process's only once that has seen it there under the lock.
So neither two starts at once nor one amid another's work remove what is in use. Where the file system locks no
folders, nothing is removed but by its own process.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path


class PassingFolder:
    """A new folder of this process's own."""

    def __init__(self, parent: Path, prefix: str) -> None:
        """Remove the folders of this user's processes that have ended, then make one.

        Args:
            parent: where they stand.
            prefix: how their names begin, and no other's.

        Raises:
            OSError: none can be made there.
        """
        self._lock: int | None = None
        for left in parent.glob(f"{prefix}*"):
            with contextlib.suppress(OSError):
                lock = _lock(left)
                if lock is not None:
                    _remove(left, lock)
        while True:
            self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
            try:
                self._lock = _lock(self.path)
            except OSError:
                return
            if (
                self._lock is not None
            ):  # else another start took the new folder for one that was left
                return

    def close(self) -> None:
        """Remove it, with all that is in it."""
        _remove(self.path, self._lock)


def _lock(folder: Path) -> int | None:
    """Lock a folder; `None` if it is in use, another user's, or not there any more.

    Raises:
        OSError: the file system locks no folders.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        locked = os.fstat(descriptor)
        if locked.st_uid == os.geteuid() and os.path.samestat(locked, folder.stat()):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _remove(folder: Path, lock: int | None) -> None:
    # What can't be removed now, such as a file that a child is just writing, the next start removes.
    shutil.rmtree(folder, ignore_errors=True)
    if lock is not None:
        os.close(lock)
