"""Acting on a module when the program imports it, and not importing it before.

Invariant: whoever imports the module sees it as it is without this, loader included, once it was acted
on; an action that fails fails the import, with its own error.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

Act = Callable[[ModuleType], None]


class OnImport:
    """Actions by module name; for each module at once where it is imported already."""

    def __init__(self) -> None:
        self._finder = _Finder()

    def act(self, name: str, act: Act) -> None:
        """Call `act` with the module `name` now, or as soon as it is imported.

        Of two actions for one module the later counts.
        """
        self._finder.acts[name] = act
        if self._finder not in sys.meta_path:
            sys.meta_path.insert(0, self._finder)
        if sys.modules.get(name) is not None:  # None: the program has ruled it out
            act(importlib.import_module(name))  # waits for another thread that just imports it

    def forget(self) -> None:
        """Act on no module any more."""
        self._finder.acts.clear()
        if self._finder in sys.meta_path:
            sys.meta_path.remove(self._finder)


class _Finder(MetaPathFinder):
    """Finds what the finders behind it find, and has it acted on; those before it were asked already."""

    def __init__(self) -> None:
        self.acts: dict[str, Act] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """See `importlib.abc.MetaPathFinder`."""
        act, finders = self.acts.get(fullname), list(sys.meta_path)
        if act is None or self not in finders:
            return None
        behind = finders[finders.index(self) + 1 :]
        found = (finder.find_spec(fullname, path, target) for finder in behind)
        spec = next((one for one in found if one is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, act)
        return spec


class _Loader(Loader):
    """Loads a module by its own loader, gives it that loader back, then acts on it."""

    def __init__(self, own: Loader, act: Act) -> None:
        self._own = own
        self._act = act

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """See `importlib.abc.Loader`."""
        return self._own.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """See `importlib.abc.Loader`."""
        if module.__spec__ is not None:
            module.__spec__.loader = self._own
        module.__loader__ = self._own
        self._own.exec_module(module)
        self._act(module)
