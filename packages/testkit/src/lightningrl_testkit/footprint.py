"""What a package's modules and classes look like, and how often a package is called: for claims about manners."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, cast

from lightningrl import capture

_RESUMED = inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
_ATTRIBUTES_OF_RUNNING = ("_abc_impl", "__annotations_cache__", "__annotate_func__")
"""What Python itself changes in a class while it is used."""


@dataclass(frozen=True)
class Footprint:
    """Where -> what stands there, of all loaded modules of some packages."""

    found: Mapping[str, object]

    def changes_from(self, before: Footprint) -> list[str]:
        """The places that differ, each as a readable path."""
        places = sorted({*self.found, *before.found})
        return [
            place
            for place in places
            if not _same(self.found.get(place, _ABSENT), before.found.get(place, _ABSENT))
        ]


_ABSENT = object()


def footprint(packages: Sequence[str]) -> Footprint:
    """The state of all loaded modules of `packages`, their classes' attributes included."""
    found: dict[str, object] = {}
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] not in packages:
            continue
        for attribute, value in list(vars(module).items()):
            place = f"{name}.{attribute}"
            if isinstance(value, type) and value.__module__ == name:
                for member, inner in list(vars(value).items()):
                    if member not in _ATTRIBUTES_OF_RUNNING:
                        found[f"{place}.{member}"] = inner
            elif isinstance(value, list):
                found[place] = (list, *map(id, cast("list[object]", value)))
            elif isinstance(value, dict) and not attribute.startswith("__"):
                pairs = cast("dict[object, object]", value).items()
                found[place] = (dict, *((id(key), id(one)) for key, one in pairs))
            elif not isinstance(value, ModuleType):
                found[place] = value
    return Footprint(found)


def _same(one: object, other: object) -> bool:
    if isinstance(one, tuple) and isinstance(other, tuple):
        return one is other or cast("tuple[object, ...]", one) == other
    return one is other


@dataclass
class Counted:
    """Calls so far."""

    calls: int = 0


@contextmanager
def calls_into(adapter: type) -> Generator[Counted]:
    """Count the Python calls, in this thread, of functions of capture and of the adapter's package.

    Coroutines are left out: they are called again whenever they go on, as often as the network likes.
    """
    files = (capture.__file__, sys.modules[adapter.__module__].__file__)
    folders = tuple(str(Path(one).parent) for one in files if one is not None)
    counted = Counted()

    def count(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if (
            event == "call"
            and code.co_filename.startswith(folders)
            and not code.co_flags & _RESUMED
        ):
            counted.calls += 1

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        yield counted
    finally:
        sys.setprofile(before)
