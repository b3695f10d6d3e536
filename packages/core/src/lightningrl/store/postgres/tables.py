"""The tables of a store in PostgreSQL: made where there are none, refused where they are another's.

Invariant: whoever uses a store holds a shared lock on it for as long as it runs, and who changes its
tables holds it alone, so that no process works on tables of another version.
"""

from __future__ import annotations

import secrets

import psycopg

from lightningrl.errors import ConfigError
from lightningrl.store.postgres.session import BEGIN, PostgresSession
from lightningrl.store.queries import schema
from lightningrl.store.versions import SCHEMA_VERSION, check_version

_KEY = "hashtext('lightningrl'), hashtext(current_schema())"
"""Of this store's lock; a database may hold a store in each of its schemas."""

_LEAVING_SECONDS = 3


def use(session: PostgresSession) -> None:
    """Take part in the shared lock, then check that the tables are of this version.

    Raises:
        ConfigError: they are not, or belong to another program.
    """
    session.control(f"SELECT pg_advisory_lock_shared({_KEY})")
    check(session)


def check(session: PostgresSession) -> None:
    """Check that the tables are of this version.

    Raises:
        ConfigError: they are not, or belong to another program.
    """
    found = version(session)
    if found is None:
        raise ConfigError(
            f"the database {session.name!r} is not empty and not a LightningStore; choose another "
            "database, or a schema of its own by `?options=-csearch_path%3DSCHEMA`"
        )
    check_version(session.name, found)


def version(session: PostgresSession) -> int | None:
    """The schema version. None: it is no store."""
    if session.row("is_ours") is None:
        return None
    row = session.row("meta", name="schema_version")
    return None if row is None else int(row[0])


def lock_alone(session: PostgresSession) -> bool:
    """Take the lock alone until the transaction ends; False where somebody goes on taking part in it.

    The server notices only after a moment that a process has let go of its connection.
    """
    session.control(f"SET LOCAL lock_timeout = '{_LEAVING_SECONDS}s'")
    try:
        session.control(f"SELECT pg_advisory_xact_lock({_KEY})")
    except psycopg.errors.LockNotAvailable:
        return False
    session.control("SET LOCAL lock_timeout TO DEFAULT")
    return True


def create_if_empty(session: PostgresSession) -> None:
    """Make the tables in an empty schema; of two processes that try at once one does."""
    if session.row("is_empty") is None:
        return
    session.begin(BEGIN, f"SELECT pg_advisory_xact_lock({_KEY})")
    try:
        if session.row("is_empty") is not None:
            session.control(schema("postgres"))
            session.run("put_meta", name="schema_version", value=str(SCHEMA_VERSION).encode())
            session.run("put_meta", name="secret", value=secrets.token_bytes(32))
        session.control("COMMIT")
    except psycopg.Error:
        session.control("ROLLBACK")
        raise
