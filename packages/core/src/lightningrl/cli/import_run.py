"""`lightningrl import FILE`: a run's file, as `lightningrl export RUN --to` wrote it, into a store."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from lightningrl.archive import import_run
from lightningrl.checks.evidence import counted
from lightningrl.errors import ConfigError
from lightningrl.settings import client_key
from lightningrl.store import open_store


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--into", metavar="STORE", help="An SQLite file, made where there is none, or a URL.")
@click.option("--server", metavar="URL", help="Into the store of a server.")
@click.option("--key", default=client_key, hidden=True, help="The server's admin key.")
def import_command(file: Path, into: str | None, server: str | None, key: str | None) -> None:
    """Load a run's records into a store.

    FILE is what `lightningrl export RUN --to FILE` wrote, as JSON lines or Parquet. What the store has already is passed over, and refused where it differs.
    """
    if (into is None) == (server is None):
        raise ConfigError("name the store by --into STORE or by --server URL")
    run, new = asyncio.run(_import(file, into or str(server), key if server else None))
    click.echo(f"loaded {counted(new, 'record')} of {run}")


async def _import(file: Path, url: str, key: str | None) -> tuple[str, int]:
    store = open_store(url, key=key)
    try:
        return await import_run(store, file)
    finally:
        await store.close()
