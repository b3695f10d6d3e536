"""Which runs there are to look at, and their stores.

Invariant: stores are opened for reading only, and each question to one is a short transaction of its own; a
store of an older schema is read from a copy that was upgraded, in a folder that goes when this does.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from lightningrl.cli.stored_run import RUNS, load_run_recipe
from lightningrl.errors import ConfigError, LightningError, NotFound
from lightningrl.keys import Access
from lightningrl.recipe import LoadedRecipe
from lightningrl.store import Store, open_store
from lightningrl.store.databases import shown
from lightningrl.store.http import HttpStore
from lightningrl.store.urls import Kind, kind_of, path_of
from lightningrl.user_input.names import suggest
from lightningrl_ui.kept import Kept

_RETRY_SECONDS = 2.0
"""How long a server that doesn't answer is tried again."""


@dataclass(frozen=True)
class Run:
    """A run that was found."""

    key: str
    """Its name in addresses: the run's own, with a digest of its place behind it where several have that."""
    name: str
    """In its store."""
    folder: Path | None
    """`None`: only a store is known."""
    store_url: str | None
    """`None`: it has none, or none yet."""
    place: str
    """Where it was found, for people."""
    recipe: LoadedRecipe | None = None
    """`None`: only a store is known, or the recipe can't be read."""
    problem: str | None = None
    """Why something of it can't be read."""

    @property
    def long_key(self) -> str:
        """Opens it too, and also where no other run has its name: so an address stays good when others come or go."""
        return f"{self.name}@{_digest(self.place)}"


@dataclass
class _Opened:
    store: Store
    file_id: int | None
    """Of an SQLite file, to see that another took its place."""
    copied_at: datetime | None
    """When a store of an older schema was copied. `None`: it is read where it is."""
    url: str
    """What is read: the store's own, or its copy's."""


@dataclass
class Sources:
    """What the command was pointed at."""

    targets: Sequence[str]
    """Runs, folders of runs, files and URLs of stores; none: the runs in `runs/`."""
    server_key: str | None = None
    """Of servers among them."""
    only: frozenset[str] | None = None
    """Names of the runs that are shown. `None`: all."""
    kept: Kept = field(default_factory=Kept)
    """Answers that take long."""
    _opened: dict[str, _Opened] = field(default_factory=dict[str, "_Opened"])
    _opening: asyncio.Lock = field(default_factory=asyncio.Lock)
    _copies: list[tempfile.TemporaryDirectory[str]] = field(
        default_factory=list[tempfile.TemporaryDirectory[str]]
    )
    """At most one folder."""

    def seen_by(self, access: Access) -> Sources:
        """The same, with the same open stores, as somebody sees it who may see some runs alone."""
        return self if access.runs is None else replace(self, only=access.runs)

    def check(self) -> None:
        """Refuse a target that is nothing to look at.

        Raises:
            ConfigError: it names neither a run, nor a folder, a store or a server.
        """
        for target in self.targets:
            if _kind(target) is None:
                names = [path.parent.name for path in RUNS.glob("*/recipe.yaml")]
                raise ConfigError(
                    f"{target!r} is no run, no folder with runs, no file of a store and no server's URL."
                    + suggest(target, names)
                )

    async def runs(self) -> list[Run]:
        """All runs, in order of the targets; within a folder by name."""
        found: list[Run] = []
        for target in self.targets or (str(RUNS),):
            kind = _kind(target)
            if isinstance(kind, Path):
                found += [_folder_run(folder) for folder in _run_folders(kind)]
            elif kind is not None:
                found += await self._stored_runs(kind)
        return [one for one in _with_keys(found) if self.only is None or one.name in self.only]

    async def run(self, key: str) -> Run:
        """The run of that key.

        Raises:
            NotFound: there is none.
        """
        runs = await self.runs()
        for run in runs:
            if key in (run.key, run.long_key):
                return run
        raise NotFound(f"there is no run {key!r}.{suggest(key, [run.key for run in runs])}")

    async def store(self, run: Run) -> Store | None:
        """The run's store, open for reading. `None`: it has none (yet).

        Raises:
            ConfigError: it is no store, or newer than this LightningRL.
            StoreUnavailable: it can't be read.
        """
        return None if run.store_url is None else await self._open(run.store_url)

    async def store_apart(self, run: Run) -> Callable[[], Store]:
        """What opens the run's store once more, for a process of its own; who calls it closes the store.

        Raises:
            NotFound: it has none.
        """
        if await self.store(run) is None:
            raise NotFound(f"run {run.key!r} has no store")
        return functools.partial(_connect, self._opened[run.store_url or ""].url, self.server_key)

    def copied_at(self, run: Run) -> datetime | None:
        """When the run's store was copied because its schema is older. `None`: it is read where it is."""
        opened = self._opened.get(run.store_url or "")
        return None if opened is None else opened.copied_at

    async def close(self) -> None:
        """Close all stores, and delete copies."""
        await self.kept.close()
        for opened in self._opened.values():
            await opened.store.close()
        self._opened.clear()
        for folder in self._copies:
            folder.cleanup()

    async def _stored_runs(self, url: str) -> list[Run]:
        place = shown(url) if kind_of(url) is not Kind.HTTP else url
        try:
            names = await (await self._open(url)).runs()
        except LightningError as error:
            return [Run("", place, None, None, place, problem=str(error))]
        return [Run("", name, None, url, place) for name in names]

    async def _open(self, url: str) -> Store:
        async with self._opening:
            file_id = _file_id(url)
            opened = self._opened.get(url)
            if opened is not None and opened.file_id != file_id:
                await opened.store.close()
                opened = None
            if opened is None:
                opened = await asyncio.to_thread(self._open_anew, url, file_id)
                self._opened[url] = opened
            return opened.store

    def _open_anew(self, url: str, file_id: int | None) -> _Opened:
        if kind_of(url) is Kind.SQLITE:
            # Only now: servers and PostgreSQL need no apsw.
            from lightningrl.store.sqlite.copy import is_older, migrated_copy

            if is_older(path_of(url)):
                if not self._copies:
                    self._copies.append(tempfile.TemporaryDirectory(prefix="lightningrl-ui-"))
                copy = Path(self._copies[0].name) / f"{_digest(url)}-{file_id}.db"
                migrated_copy(path_of(url), copy)
                return _Opened(
                    _connect(str(copy), self.server_key), file_id, datetime.now(UTC), str(copy)
                )
        return _Opened(_connect(url, self.server_key), file_id, None, url)


def _connect(url: str, key: str | None) -> Store:
    if kind_of(url) is Kind.HTTP:
        return HttpStore.connect(url, key=key, retry_seconds=_RETRY_SECONDS)
    return open_store(url, read_only=True)


def _kind(target: str) -> Path | str | None:
    """A folder, the URL of a store, or `None` where it is neither."""
    if kind_of(target) is not Kind.SQLITE:
        return target
    path = path_of(target)
    for place in (path, RUNS / path):
        if place.is_dir():
            return place
    return str(path) if path.is_file() else None


def _run_folders(folder: Path) -> list[Path]:
    """The folder itself where it is a run's, else those in it."""
    if (folder / "recipe.yaml").is_file():
        return [folder]
    return sorted(found.parent for found in folder.glob("*/recipe.yaml"))


def _folder_run(folder: Path) -> Run:
    store = folder / "store.db"
    url = str(store) if store.is_file() else None
    try:
        recipe = _recipe(folder, (folder / "recipe.yaml").stat().st_mtime_ns)
    except LightningError as error:
        return Run("", folder.name, folder, url, str(folder), problem=str(error))
    return Run("", recipe.recipe.name, folder, url, str(folder), recipe)


@functools.lru_cache(maxsize=256)
def _recipe(folder: Path, changed_ns: int) -> LoadedRecipe:
    del changed_ns  # of the file: what the cache knows it by
    return load_run_recipe(folder)


def _with_keys(runs: Sequence[Run]) -> list[Run]:
    counts = Counter(run.name for run in runs)
    return [replace(run, key=run.name if counts[run.name] == 1 else run.long_key) for run in runs]


def _digest(place: str) -> str:
    return hashlib.sha256(place.encode()).hexdigest()[:8]


def _file_id(url: str) -> int | None:
    if kind_of(url) is not Kind.SQLITE:
        return None
    try:
        return path_of(url).stat().st_ino
    except FileNotFoundError:
        return None
