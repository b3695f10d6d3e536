"""`lightningrl db`: what an operator does to a store's database."""

from __future__ import annotations

import click

from lightningrl.errors import ConfigError, StoreError
from lightningrl.settings import store_url
from lightningrl.store.databases import check_database, shrink_database, upgrade_database
from lightningrl.store.versions import SCHEMA_VERSION


@click.group()
def db() -> None:
    """Upgrade, check and shrink a store's database."""


@db.command()
@click.argument("url", required=False)
def upgrade(url: str | None) -> None:
    """Lead a store's tables to this version.

    URL is a path or postgresql://USER@HOST/DATABASE; LIGHTNINGRL_STORE unless given. Stop what uses the store first, and keep a copy of it.
    """
    found = upgrade_database(_given(url))
    if found == SCHEMA_VERSION:
        click.echo(f"the store has schema version {found} already")
    else:
        click.echo(f"upgraded the store from schema version {found} to {SCHEMA_VERSION}")


@db.command()
@click.argument("url", required=False)
def check(url: str | None) -> None:
    """Check a store's version, integrity and invariants.

    URL is a path or postgresql://USER@HOST/DATABASE; LIGHTNINGRL_STORE unless given. Works while servers use the store. Reads all of it; status 1 where something is wrong.
    """
    found = check_database(_given(url))
    for problem in found:
        click.echo(problem)
    if found:
        raise StoreError(f"{len(found)} problems found; restore a copy, or start anew elsewhere")
    click.echo(f"the store is in order; schema version {SCHEMA_VERSION}")


@db.command()
@click.argument("url", required=False)
def shrink(url: str | None) -> None:
    """Give the space of deleted records back to the system.

    URL is a path; LIGHTNINGRL_STORE unless given. Stop what uses the store first: its file is written anew, and the disk needs room for what it holds twice more meanwhile.
    """
    before, after = shrink_database(_given(url))
    click.echo(f"the file had {before} bytes, now {after}")


def _given(url: str | None) -> str:
    url = url or store_url()
    if url is None:
        raise ConfigError("no store given; name its path or URL, or set LIGHTNINGRL_STORE")
    return url
