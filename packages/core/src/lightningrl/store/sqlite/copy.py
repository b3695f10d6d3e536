"""A copy of a store of an older version, led to this one: for those who may not change the original."""

from __future__ import annotations

from pathlib import Path

import apsw

from lightningrl.errors import StoreUnavailable
from lightningrl.machine.clock import SystemClock
from lightningrl.store.sqlite.session import open_file, translating, version
from lightningrl.store.sqlite.upgrade import upgrade
from lightningrl.store.versions import SCHEMA_VERSION


def is_older(path: Path) -> bool:
    """Whether the store at `path` has an older schema, and can be upgraded.

    Raises:
        StoreUnavailable: there is none, or it can't be read.
    """
    if not path.exists():
        raise StoreUnavailable(f"there is no store {str(path)!r}; check the path")
    session = open_file(path.absolute(), SystemClock(), read_only=True)
    try:
        with translating(path), session.transaction():
            found = version(session)
    finally:
        session.close()
    return found is not None and found < SCHEMA_VERSION


def migrated_copy(path: Path, copy: Path) -> None:
    """Copy the store at `path`, as it is at one instant, to the new file `copy`, and upgrade that.

    Works while another process writes it. The original is read and not changed.

    Raises:
        ConfigError: it is no store, or newer than this LightningRL.
        StoreUnavailable: it can't be read, or the copy not written.
    """
    source = open_file(path.absolute(), SystemClock(), read_only=True)
    try:
        with translating(path):
            target = apsw.Connection(str(copy))
            try:
                with target.backup("main", source.connection, "main") as backup:
                    while not backup.done:
                        backup.step(4096)
            finally:
                target.close()
    finally:
        source.close()
    upgrade(copy)
