"""Leads the tables of a file to this version, as the file's only writer."""

from __future__ import annotations

from pathlib import Path

import apsw

from lightningrl.errors import StoreUnavailable
from lightningrl.machine.clock import SystemClock
from lightningrl.store.migrations import scripts_from
from lightningrl.store.sqlite.lock import WriterLock
from lightningrl.store.sqlite.session import SqliteSession, open_file, translating, version
from lightningrl.store.versions import SCHEMA_VERSION


def upgrade(path: Path) -> int:
    """Upgrade the store at `path` in one transaction; return the version that it had.

    Raises:
        StoreLocked: another process writes it.
        StoreUnavailable: there is none, or it can't be written.
        ConfigError: it is no store, or newer than this LightningRL.
    """
    path = path.absolute()
    if not path.exists():
        raise StoreUnavailable(f"there is no store {str(path)!r}; check the path")
    lock = WriterLock(path)
    try:
        session = open_file(path, SystemClock(), read_only=False)
        try:
            return _upgrade(session)
        finally:
            session.close()
    finally:
        lock.release()


def _upgrade(session: SqliteSession) -> int:
    with translating(session.path):
        # A script that makes a table anew must be able to drop the old one, which others refer to.
        session.connection.pragma("foreign_keys", False)
        with session.transaction("BEGIN IMMEDIATE"):
            found = version(session)
            for script in scripts_from("sqlite", str(session.path), found):
                session.connection.execute(script)
            session.run("set_schema_version", value=SCHEMA_VERSION)
            wrong = session.connection.execute("PRAGMA foreign_key_check").fetchall()
            if wrong:
                raise apsw.ConstraintError(f"rows refer to what is not there: {wrong[:3]}")
    assert found is not None, "what is no store was refused"
    return found
