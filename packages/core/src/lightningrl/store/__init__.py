"""The LightningStore: what runners, gateway and algorithm share, and all that they share."""

from __future__ import annotations

from pathlib import Path

from lightningrl.errors import ConfigError
from lightningrl.store.base import Ended, LedgerEntry, RolloutQuery, RunSummary, Store

__all__ = ["Ended", "LedgerEntry", "RolloutQuery", "RunSummary", "Store", "open_store"]


def open_store(url: str | Path, *, key: str | None = None, read_only: bool = False) -> Store:
    """Open the store at `url`: `sqlite:PATH` or a path, or the `http(s)://` URL of a server.

    Args:
        url: Where the store is.
        key: The server's admin key; files have none.
        read_only: Open a file without becoming its writer.

    Raises:
        ConfigError: `url` has another scheme, or an argument doesn't go with it.
        StoreLocked: another process writes the file.
    """
    scheme, colon, rest = str(url).partition(":")
    # A single letter is a drive of Windows.
    if isinstance(url, Path) or not colon or len(scheme) == 1:
        scheme, rest = "sqlite", str(url)
    if scheme == "sqlite":
        # apsw and aiohttp are loaded only by those who use them.
        from lightningrl.store.sqlite import SqliteStore

        if key is not None:
            raise ConfigError(f"the store {str(url)!r} is a file and takes no key; leave it out")
        return SqliteStore.open(rest, read_only=read_only)
    if scheme in ("http", "https"):
        from lightningrl.store.http import HttpStore

        if read_only:
            raise ConfigError(f"{str(url)!r} is a server; `read_only` is for files, leave it out")
        return HttpStore.connect(str(url), key=key)
    raise ConfigError(
        f"no store has URLs that begin with {scheme!r}; use sqlite:PATH, a path, or http(s)://HOST"
    )
