"""Is the store in a PostgreSQL database in order?"""

from __future__ import annotations

import psycopg

from lightningrl.store import checks
from lightningrl.store.postgres import tables
from lightningrl.store.postgres.link import Link
from lightningrl.store.postgres.session import BEGIN_READING, display_name, translated


def check(url: str) -> list[str]:
    """What is not in order, a sentence each. Works while servers use the store.

    Raises:
        ConfigError: it is no store of this version.
        StoreUnavailable: it can't be reached or read.
    """
    name = display_name(url)
    link = Link(url, name, 0.0, tables.check)
    try:
        session = link.session()
        session.begin(BEGIN_READING)
        return checks.problems(session)
    except psycopg.Error as error:
        raise translated(name, error) from error
    finally:
        link.close()
