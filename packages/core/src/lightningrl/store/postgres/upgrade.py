"""Leads the tables in a database to this version, while no process uses them."""

from __future__ import annotations

import psycopg

from lightningrl.errors import StoreLocked
from lightningrl.store.migrations import scripts_from
from lightningrl.store.postgres import tables
from lightningrl.store.postgres.link import Link
from lightningrl.store.postgres.session import BEGIN, PostgresSession, display_name, translated
from lightningrl.store.versions import SCHEMA_VERSION


def upgrade(url: str) -> int:
    """Upgrade the store at `url` in one transaction; return the version that it had.

    Raises:
        StoreLocked: a process uses it.
        StoreUnavailable: it can't be reached, or the role may not change the tables.
        ConfigError: it is no store, or newer than this LightningRL.
    """
    name = display_name(url)
    link = Link(url, name, 0.0, lambda _: None)
    try:
        return _upgrade(link.session())
    except psycopg.Error as error:
        raise translated(name, error) from error
    finally:
        link.close()


def _upgrade(session: PostgresSession) -> int:
    session.begin(BEGIN)
    if not tables.lock_alone(session):
        raise StoreLocked(
            f"processes use the store {session.name!r}, or another one upgrades it; "
            "stop the servers, then try again"
        )
    found = tables.version(session)
    for script in scripts_from("postgres", session.name, found):
        session.control(script)
    session.run("set_schema_version", value=str(SCHEMA_VERSION).encode())
    session.control("COMMIT")
    assert found is not None, "what is no store was refused"
    return found
