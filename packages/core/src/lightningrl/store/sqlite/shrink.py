"""Gives the space that deletion freed back to the system, as the file's only writer."""

from __future__ import annotations

from pathlib import Path

import apsw

from lightningrl.errors import StoreUnavailable
from lightningrl.machine.clock import SystemClock
from lightningrl.store.sqlite.lock import WriterLock
from lightningrl.store.sqlite.session import open_session, translating


def shrink(path: Path) -> tuple[int, int]:
    """Write the file anew without its free pages; return its bytes before and after.

    Meanwhile the disk needs room for the file's contents twice more: as a temporary file, and in the
    write-ahead log. Broken off, it leaves the file as it was.

    Raises:
        StoreLocked: another process writes it.
        StoreUnavailable: there is none, the disk is full, or a reader doesn't let go of it.
        ConfigError: it is no store of this version.
    """
    path = path.absolute()
    if not path.exists():
        raise StoreUnavailable(f"there is no store {str(path)!r}; check the path")
    lock = WriterLock(path)
    try:
        session = open_session(path, SystemClock(), read_only=False)
        try:
            with translating(path):
                session.connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
                before = path.stat().st_size
                session.connection.execute("VACUUM")
                session.connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
            return before, path.stat().st_size
        finally:
            session.close()
    finally:
        lock.release()
