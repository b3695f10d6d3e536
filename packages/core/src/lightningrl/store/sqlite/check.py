"""Is the store in a file in order?"""

from __future__ import annotations

from pathlib import Path

from lightningrl.machine.clock import SystemClock
from lightningrl.store import checks
from lightningrl.store.sqlite.session import SqliteSession, open_session, translating


def check(path: Path) -> list[str]:
    """What is not in order, a sentence each. Works while a server writes the store.

    Raises:
        ConfigError: it is no store of this version.
        StoreUnavailable: there is none, or it can't be read at all.
    """
    session = open_session(path.absolute(), SystemClock(), read_only=True)
    try:
        with translating(session.path), session.transaction():
            return _damage(session) or checks.problems(session)
    finally:
        session.close()


def _damage(session: SqliteSession) -> list[str]:
    """What SQLite itself finds wrong; the rules are not looked at where it does."""
    found = [text for (text,) in session.connection.execute("PRAGMA integrity_check(10)")]
    if found != ["ok"]:
        return [f"the file is damaged: {text}" for text in found]
    broken = session.connection.execute("PRAGMA foreign_key_check").fetchall()
    return [f"row {row} of {table} refers to what is not in {to}" for table, row, to, _ in broken]
