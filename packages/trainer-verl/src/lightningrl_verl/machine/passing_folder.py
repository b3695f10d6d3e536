"""The folder of a local Ray's sockets and logs; the next start removes what a killed driver left.

Invariants: a driver holds the lock of its folder, which the kernel lets go of when it ends, however that ends;
a folder is removed only under its lock, and is its driver's only once the driver has seen it there under the lock.
So neither two starts at once nor one amid another's work remove what is in use.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

_PREFIX = "ray-lrl-"
"""Short, for the paths of Ray's sockets begin with it, and may have 107 characters in all."""


class SessionFolder:
    """A new folder of this process's own in the system's temporary one."""

    def __init__(self) -> None:
        """Remove the folders of drivers of this user that have ended, then make one.

        Raises:
            OSError: none can be made there.
        """
        parent = Path(tempfile.gettempdir())
        for left in parent.glob(f"{_PREFIX}*"):
            lock = _lock(left)
            if lock is not None:
                _remove(left, lock)
        while True:
            self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
            lock = _lock(self.path)
            if lock is not None:  # else another start took the new folder for one that was left
                self._lock = lock
                return

    def remove(self) -> None:
        """Remove it, with all that is in it."""
        _remove(self.path, self._lock)


def _lock(folder: Path) -> int | None:
    """Lock a folder; `None` if it is in use, another user's, or not there any more."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        locked = os.fstat(descriptor)
        if locked.st_uid == os.geteuid() and os.path.samestat(locked, folder.stat()):
            return descriptor
    except OSError:
        pass  # in use, or removed meanwhile
    os.close(descriptor)
    return None


def _remove(folder: Path, lock: int) -> None:
    # What can't be removed now, such as a file that an agent of Ray's is just writing, the next start removes.
    shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)
