"""Replacing methods and functions of a framework, so that it can be undone.

Invariant: after `undo` every class and module has exactly the attributes that it had before, also those
that were inherited; only where somebody has put a function of theirs in the place of ours, theirs stays. What
any adapter has wrapped already is not wrapped again, and is there until the last that asked for it lets go.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, cast

from lightningrl.capture.adapter import check_version
from lightningrl.errors import ConfigError

if TYPE_CHECKING:
    from lightningrl.capture.adapter import Adapter

_log = logging.getLogger(__name__)

_MARK = "_lightningrl_wrapper"
_ABSENT = object()

Make = Callable[[Any], Any]
"""From the original function to the one that stands in its place."""


class Patches:
    """The replacements that one adapter has made."""

    def __init__(self) -> None:
        self._undo: list[tuple[type | ModuleType, str, Any, Any]] = []
        """Where, what stood there, and what does since."""

    def __bool__(self) -> bool:
        """Whether anything is replaced now."""
        return bool(self._undo)

    def replace(self, owner: type | ModuleType, name: str, make: Make) -> None:
        """Replace a method of a class, or a function of a module, by `make(original)`.

        A static method stays one.

        Raises:
            ConfigError: `owner` doesn't have it: the framework's version isn't what was expected.
        """
        found: Any = owner.__dict__.get(name, _ABSENT)
        inherited = getattr(owner, name, _ABSENT) if found is _ABSENT else found
        if inherited is _ABSENT:
            module = isinstance(owner, ModuleType)
            where = owner.__name__ if module else f"{owner.__module__}.{owner.__qualname__}"
            raise ConfigError(
                f"{where} has no {name!r}, so its agents can't be captured; install a version of the "
                "framework that the adapter names"
            )
        static = isinstance(inherited, staticmethod)
        original = inherited.__func__ if static else inherited
        if hasattr(original, _MARK):
            return
        wrapper = make(original)
        setattr(wrapper, _MARK, True)
        placed = staticmethod(wrapper) if static else wrapper
        self._undo.append((owner, name, found, placed))
        setattr(owner, name, placed)

    def replace_own(self, owner: type, name: str, make: Make) -> None:
        """Replace a method that `owner` defines itself and not abstractly; else do nothing.

        For visitors of `follow`: what a class inherits is replaced where it is defined.
        """
        method = owner.__dict__.get(name)
        if method is not None and not getattr(method, "__isabstractmethod__", False):
            self.replace(owner, name, make)

    def follow(self, base: type, visit: Callable[[type], None]) -> None:
        """Call `visit` for `base`, for its subclasses, and for those that are defined later."""
        hook = base.__dict__.get("__init_subclass__", _ABSENT)

        def announce(cls: type, **kwargs: Any) -> None:
            super(base, cls).__init_subclass__(**kwargs)
            visit(cls)

        if hook is not _ABSENT:
            raise ConfigError(
                f"{base.__module__}.{base.__qualname__} defines __init_subclass__ itself, which this "
                "adapter doesn't expect; install a version of the framework that it names"
            )
        placed = classmethod(announce)
        self._undo.append((base, "__init_subclass__", hook, placed))
        type.__setattr__(base, "__init_subclass__", placed)
        for cls in family(base):
            visit(cls)

    def undo(self) -> None:
        """Put everything back, the last first."""
        while self._undo:
            owner, name, found, placed = self._undo.pop()
            if owner.__dict__.get(name) is not placed:
                _log.warning("%s.%s was replaced by others and stays so", owner.__name__, name)
            elif found is _ABSENT:
                delattr(owner, name)
            else:
                setattr(owner, name, found)


@dataclass(frozen=True, eq=False)
class _Hooked:
    patches: Patches
    users: set[PatchingAdapter] = field(default_factory=set["PatchingAdapter"])
    """The adapters that are installed: one has hooked, the others found it so."""


_hooked: dict[type, _Hooked] = {}
"""By the class that is followed."""


class PatchingAdapter:
    """What the adapters that replace methods of their framework have in common."""

    followed: ClassVar[type]
    """A class that `hook` follows: by it an adapter that has hooked already is found."""

    def __init__(self) -> None:
        self._patches = Patches()

    def hook(self, patches: Patches) -> None:
        """Replace what is to be replaced."""
        raise NotImplementedError

    def install(self) -> None:
        """Hook into the framework, wholly or not at all; a second time, or by a second adapter, nothing changes.

        Raises:
            ConfigError: its version is not one of `versions`, or a hook point is missing.
        """
        hooked = _hooked.get(self.followed)
        if hooked is None:
            check_version(cast("type[Adapter]", type(self)))
            try:
                self.hook(self._patches)
            except BaseException:
                self._patches.undo()
                raise
            hooked = _hooked[self.followed] = _Hooked(self._patches)
        hooked.users.add(self)

    def uninstall(self) -> None:
        """Undo all that `install` did, with the last adapter that is installed."""
        hooked = _hooked.get(self.followed)
        if hooked is None or self not in hooked.users:
            return
        hooked.users.discard(self)
        if not hooked.users:
            del _hooked[self.followed]
            hooked.patches.undo()


def family(base: type) -> list[type]:
    """The class and all its subclasses, each once."""
    found: dict[type, None] = {base: None}
    for child in base.__subclasses__():
        found.update(dict.fromkeys(family(child)))
    return list(found)
