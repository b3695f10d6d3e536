"""The version of the store's tables, and the refusal of a store of another version."""

from __future__ import annotations

from lightningrl.errors import ConfigError

SCHEMA_VERSION = 7
"""Version of `schema.sql`; +1 at every change of the tables, with a migration from the former one."""


def check_version(name: str, found: int) -> None:
    """Refuse the store `name` unless it is of this version.

    Raises:
        ConfigError: it is older or newer; the message names both versions and what to do.
    """
    if found == SCHEMA_VERSION:
        return
    if found < SCHEMA_VERSION:
        remedy = "stop what uses it, then run `lightningrl db upgrade` on it"
    else:
        remedy = "use a LightningRL as new as the one that made it, or another store"
    raise ConfigError(
        f"the store {name!r} has schema version {found}, this LightningRL uses "
        f"version {SCHEMA_VERSION}; {remedy}"
    )
