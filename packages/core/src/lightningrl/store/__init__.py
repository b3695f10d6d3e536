"""The LightningStore: what runners, gateway and algorithm share, and all that they share."""

from __future__ import annotations

from pathlib import Path

from lightningrl.errors import ConfigError
from lightningrl.store.base import Ended, LedgerEntry, RolloutQuery, RunSummary, Store
from lightningrl.store.urls import Kind, kind_of

__all__ = ["Ended", "LedgerEntry", "RolloutQuery", "RunSummary", "Store", "open_store"]


def open_store(url: str | Path, *, key: str | None = None, read_only: bool = False) -> Store:
    """Open the store at `url`: `sqlite:PATH` or a path, `postgresql://...`, or a server's `http(s)://`.

    Args:
        url: Where the store is.
        key: The server's admin key; databases have none.
        read_only: Open a file without becoming its writer; refuse every write.

    Raises:
        ConfigError: `url` has another scheme, or an argument doesn't go with it.
        StoreLocked: another process writes the file.
        StoreUnavailable: a database can't be reached or opened; servers are reached when first used.
    """
    # Each of apsw, psycopg and aiohttp is loaded only by those who use it.
    kind = kind_of(url)
    if kind is Kind.HTTP:
        from lightningrl.store.http import HttpStore

        if read_only:
            raise ConfigError(f"{str(url)!r} is a server; `read_only` is for files, leave it out")
        return HttpStore.connect(str(url), key=key)
    if key is not None:
        what = "a file" if kind is Kind.SQLITE else "a database"
        raise ConfigError(f"the store is {what} and takes no key; leave it out")
    from lightningrl.store.databases import open_database

    return open_database(url, read_only=read_only)
