"""Which run a command is about: a folder on this machine, or one that a server holds.

Invariant: opened only for reading, so that looking at a run never disturbs the process that writes it,
except by the commands that change it (`open_to_change`): these take the writer's place, or ask the server.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from lightningrl.errors import ConfigError, NotFound
from lightningrl.recipe import LoadedRecipe, load_recipe
from lightningrl.settings import client_key
from lightningrl.store import Store, open_store
from lightningrl.store.http import HttpStore
from lightningrl.store.urls import Kind, kind_of, path_of
from lightningrl.user_input.names import suggest

RUNS = Path("runs")
"""Where runs are, relative to the working directory, unless their recipes say otherwise."""

_RETRY_SECONDS = 2.0
"""How long a server may take to come up before a person is told that there is none."""

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class StoredRun:
    """A run that can be read."""

    name: str
    store: Store
    recipe: LoadedRecipe | None
    """`None`: only a server is known, and servers don't hold recipes."""
    folder: Path | None = None
    """`None`: only a server is known."""


def server_options(command: F) -> F:
    """Add `--server` and the key that goes with it to a command."""
    with_key = click.option(
        "--key",
        default=client_key,
        hidden=True,  # a key on the command line can be read by every user of the machine
        help="The server's admin key.",
    )(command)
    return click.option(
        "--server",
        metavar="URL",
        help="A run of a server, or of a store by its file or URL; not a folder's.",
    )(with_key)


BEGAN_WITH = "began_with"
"""Of `run.json`: alias -> folder of the weights that a trained policy began with, after a warm start."""


def find_run_folder(run: str) -> Path:
    """The folder of a run, given as a path or by the name that it has in `runs/`.

    A name is looked for in `runs/` first: the folder of the agent, with a recipe of its own, may be called so too.

    Raises:
        ConfigError: there is none; the message has the nearest name.
    """
    places = dict.fromkeys((RUNS / run, Path(run)))
    for folder in places:
        if (folder / "recipe.yaml").is_file():
            return folder
    names = [found.parent.name for found in RUNS.glob("*/recipe.yaml")]
    looked = " or ".join(repr(str(place)) for place in places)
    raise ConfigError(f"there is no run {run!r}: no recipe.yaml in {looked}.{suggest(run, names)}")


def load_run_recipe(folder: Path) -> LoadedRecipe:
    """A run's resolved recipe, with the place of the file that it was started from.

    What a recipe names is relative to that place; where the run doesn't tell it, to the run's folder.
    """
    loaded = load_recipe(folder / "recipe.yaml")
    started_from = read_origin(folder).get("recipe_path")
    if not isinstance(started_from, str):
        return loaded
    return LoadedRecipe(recipe=loaded.recipe, path=Path(started_from))


def read_origin(folder: Path) -> dict[str, Any]:
    """A run's `run.json`; empty where there is none."""
    try:
        return json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except json.JSONDecodeError as error:
        raise ConfigError(f"{str(folder / 'run.json')!r} is not JSON: {error}") from error


@asynccontextmanager
async def open_runs(
    run: str | None, server: str | None, key: str | None
) -> AsyncGenerator[list[StoredRun]]:
    """The run that a command names; without a name, all runs of the server.

    Raises:
        ConfigError: neither a run nor a server is named, the run's folder doesn't exist, or it has no rollouts.
        NotFound: the server has no such run.
    """
    if server is None:
        if run is None:
            raise ConfigError("name a run's folder, or a server by --server URL")
        folder = find_run_folder(run)
        recipe = load_run_recipe(folder)
        _check_rollouts(folder, recipe)
        store = open_store(folder / "store.db", read_only=True)
        names = [recipe.recipe.name]
    else:
        recipe = folder = None
        store = _open_remote(server, key, read_only=True)
        names = [run] if run is not None else []
    try:
        if server is not None:
            names = _held(await store.runs(), names, server)
        yield [StoredRun(name, store, recipe, folder) for name in names]
    finally:
        await store.close()


def _check_rollouts(folder: Path, loaded: LoadedRecipe) -> None:
    """Say of a fine-tuning that it has no store."""
    if loaded.recipe.algorithm is None and not (folder / "store.db").exists():
        raise ConfigError(
            f"{str(folder)!r} is no run with rollouts: it has no store. Of a fine-tuning 'lightningrl drift' shows"
            " what was trained, and 'lightningrl plot' the loss"
        )


def _open_remote(url: str, key: str | None, *, read_only: bool) -> Store:
    """What `--server` names: most often a server, else a store itself."""
    if kind_of(url) is Kind.HTTP:
        return HttpStore.connect(url, key=key, retry_seconds=_RETRY_SECONDS)
    if kind_of(url) is Kind.SQLITE and not path_of(url).is_file():
        raise ConfigError(f"--server: {url!r} is neither a server's URL nor the file of a store")
    return open_store(url, read_only=read_only)


def _held(held: list[str], names: list[str], server: str) -> list[str]:
    unknown = [name for name in names if name not in held]
    if unknown:
        raise NotFound(f"{server} has no run {unknown[0]!r}.{suggest(unknown[0], held)}")
    return names or held


@asynccontextmanager
async def open_to_change(
    run: str, server: str | None, key: str | None
) -> AsyncGenerator[StoredRun]:
    """The run that a command changes.

    Raises:
        ConfigError: the run's folder doesn't exist, or it has no rollouts.
        NotFound: the server has no such run.
        StoreLocked: a process writes the folder's store; the message names its URL.
    """
    if server is None:
        folder = find_run_folder(run)
        recipe = load_run_recipe(folder)
        _check_rollouts(folder, recipe)
        store = open_store(folder / "store.db")
        name = recipe.recipe.name
    else:
        recipe = folder = None
        store = _open_remote(server, key, read_only=False)
        name = run
    try:
        if server is not None:
            _held(await store.runs(), [name], server)
        yield StoredRun(name, store, recipe, folder)
    finally:
        await store.close()
