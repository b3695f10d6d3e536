"""The adapters that this environment has, each installed when the program imports its framework.

Invariant: an adapter whose framework the program doesn't import is not loaded, and is never an error. A module
of the user's that only has a framework's name calls for no adapter.
"""

from __future__ import annotations

import functools
import logging
import re
import sys
import threading
from importlib.metadata import EntryPoint, PackageNotFoundError, distribution, entry_points
from pathlib import Path
from types import ModuleType

from lightningrl.capture.adapter import GROUP, Adapter
from lightningrl.capture.importing import OnImport
from lightningrl.errors import ConfigError

_log = logging.getLogger(__name__)

_NAME = re.compile(r"[\w.-]+")
"""What a requirement begins with: the name of a distribution."""


class Adapters:
    """Watches for frameworks, and installs their adapters.

    An adapter's own module calls for it as well: who imports that first imports the framework by it, in whose
    import the adapter isn't there yet.
    """

    def __init__(self) -> None:
        self.installed: list[Adapter] = []
        """Those that are installed now, in the order in which they were; it is this list that changes."""
        self._lock = threading.Lock()
        """Never held while something is imported: imports have locks of their own."""
        self._watching = False
        self._forgiving = False
        self._entries: list[EntryPoint] = []
        self._begun: set[str] = set()
        """Entries, by value, that are installed, are being installed, or are left out."""
        self._imports = OnImport()

    def watch(self, *, forgiving: bool = False) -> None:
        """Install what imported frameworks call for, and from now on what others will; twice is as once.

        Args:
            forgiving: an adapter that fails at a later import is an error in the log, once, and is left out.
                Else it fails that import.

        Raises:
            ConfigError: an adapter of a framework that is imported already can't be loaded or installed.
                Then nothing is installed, and nothing watched.
        """
        with self._lock:
            if self._watching:
                return
            self._watching, self._forgiving = True, forgiving
        self._entries = _entries()
        try:
            for entry in self._entries:
                if entry.name in sys.modules or entry.module in sys.modules:
                    self._install(entry)
        except BaseException:
            self.uninstall()
            raise
        for name in sorted({name for one in self._entries for name in (one.name, one.module)}):
            self._imports.act(name, functools.partial(self._imported, name))

    def uninstall(self) -> None:
        """Uninstall all of them, the last first, and watch no more."""
        self._imports.forget()
        with self._lock:
            self._watching = False
            self._begun.clear()
            installed = list(self.installed)
            self.installed.clear()
        for adapter in reversed(installed):
            adapter.uninstall()

    def _imported(self, name: str, _: ModuleType) -> None:
        for entry in self._entries:
            # An adapter that imports its framework just now is installed at the end of its own import.
            if name == entry.module or (name == entry.name and not _is_under_way(entry.module)):
                self._install_within_import(entry)

    def _install_within_import(self, entry: EntryPoint) -> None:
        try:
            self._install(entry)
        except Exception as error:
            if _is_of_half_a_module(error):
                # Another thread imports what the adapter does, and waits for the import that this is in. A
                # thread that is in none waits for both.
                threading.Thread(target=self._try, args=(entry,), daemon=True).start()
            elif self._forgiving:
                self._leave_out(entry)
            else:
                raise

    def _try(self, entry: EntryPoint) -> None:
        try:
            self._install(entry)
        except Exception:  # noqa: BLE001 - there is no import any more that could fail
            self._leave_out(entry)

    def _leave_out(self, entry: EntryPoint) -> None:
        """Go on without an adapter that has just failed."""
        with self._lock:
            self._begun.add(entry.value)
        _log.exception(
            "the adapter %r (%s) is left out: nothing of its framework is recorded",
            *(entry.name, entry.value),
        )

    def _install(self, entry: EntryPoint) -> None:
        """Install it, unless that was begun: other threads, and its own imports, come here meanwhile."""
        with self._lock:
            if not self._watching or entry.value in self._begun:
                return
            self._begun.add(entry.value)
        stranger = _stranger(entry)
        if stranger is not None:
            _log.warning(
                "the adapter %r (%s) is left out: %s is not its framework, but a module of the same "
                "name; rename it, if the agent uses the framework",
                *(entry.name, entry.value, stranger),
            )
            return
        try:
            adapter = _load(entry)
            adapter.install()
        except BaseException:
            with self._lock:
                self._begun.discard(entry.value)
            raise
        with self._lock:
            if self._watching:
                self.installed.append(adapter)
                return
        adapter.uninstall()  # all were, meanwhile


def _is_under_way(name: str) -> bool:
    """Whether a module is in the middle of its import, by what Python's own messages go by."""
    return bool(getattr(getattr(sys.modules.get(name), "__spec__", None), "_initializing", False))


def _is_of_half_a_module(error: Exception) -> bool:
    """Whether an import met another that was under way: Python breaks deadlocks of threads so."""
    found = error.__cause__ or error
    return "partially initialized module" in str(found) or type(found).__name__ == "_DeadlockError"


def find_adapters() -> list[Adapter]:
    """One of each adapter that is installed in this environment, by name; their frameworks are imported.

    Raises:
        ConfigError: an entry can't be imported or is no adapter.
    """
    entries = {entry.value: entry for entry in _entries()}
    return sorted((_load(entry) for entry in entries.values()), key=lambda one: one.name)


def adapted_modules() -> list[str]:
    """The modules whose import calls for an adapter that this environment has, sorted."""
    return sorted({entry.name for entry in _entries()})


def _entries() -> list[EntryPoint]:
    return sorted(entry_points(group=GROUP), key=lambda one: one.name)


def _load(entry: EntryPoint) -> Adapter:
    try:
        adapter: object = entry.load()()
    except ImportError as error:
        raise ConfigError(
            f"the adapter {entry.name!r} ({entry.value}) can't be imported: {error}; "
            "install its framework, or uninstall the adapter"
        ) from error
    if not isinstance(adapter, Adapter):
        raise ConfigError(f"the entry {entry.name!r} ({entry.value}) of {GROUP} is no adapter")
    return adapter


def _stranger(entry: EntryPoint) -> str | None:
    """The file of the module that was imported under a framework's name. `None`: the framework, or not known."""
    file = getattr(sys.modules.get(entry.name), "__file__", None)
    own = _framework_files(entry)
    return file if file and own and Path(file).resolve() not in own else None


def _framework_files(entry: EntryPoint) -> set[Path]:
    """Files that the module may have by what the adapter's distribution requires; empty where that is not told.

    It is not of a framework that is installed from its sources.
    """
    required = [] if entry.dist is None else entry.dist.requires or []
    found: set[Path] = set()
    for one in required:
        name = _NAME.match(one)
        try:
            files = distribution(name[0]).files if name else None
        except PackageNotFoundError:
            continue
        places = (f"{entry.name}/__init__.", f"{entry.name}.")
        owned = [file for file in files or () if file.as_posix().startswith(places)]
        found.update(Path(str(file.locate())).resolve() for file in owned)
    return found
