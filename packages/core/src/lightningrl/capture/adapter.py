"""What an adapter is, and how a package announces one.

Invariant: core imports no adapter by name. Whatever package announces itself in the entry-point group
`lightningrl.adapters` is found.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.metadata import version
from typing import Any, ClassVar, Protocol, cast, runtime_checkable

from lightningrl.errors import ConfigError

GROUP = "lightningrl.adapters"
"""The entry-point group of adapters; each entry is a class without parameters.

The entry's name is the module whose import calls for the adapter: the framework's top-level module. An adapter
whose framework has several, and of which one imports another, has an entry for each.
"""

AgentCall = Callable[[Any], Awaitable[Any]]
"""Runs an agent on its input and returns its output."""


@runtime_checkable
class Adapter(Protocol):
    """Makes one agent framework tell what it does. Passes `lightningrl_testkit.adapter.AdapterContract`."""

    name: ClassVar[str]
    framework: ClassVar[str]
    """Distribution of the framework."""
    versions: ClassVar[tuple[str, str]]
    """The first version that it works with, and the first that it may not work with."""

    def install(self) -> None:
        """Hook into the framework; a second time changes nothing.

        Raises:
            ConfigError: the framework's version is outside `versions`, or a hook point is missing.
        """
        ...

    def uninstall(self) -> None:
        """Undo all that `install` did."""
        ...

    def wrap(self, agent: Any, *, fresh: bool) -> AgentCall | None:
        """How to run `agent`, an object of the framework. `None`: it is not of this framework.

        Args:
            agent: what the recipe names, or what the factory that it names returned.
            fresh: a factory made it for one rollout; else all rollouts of the process share it.

        Raises:
            ConfigError: it is of this framework and can't be run so; the text says what to do.
        """
        ...


def check_version(adapter: Adapter | type[Adapter]) -> None:
    """Refuse a version of the framework that the adapter doesn't know.

    Raises:
        ConfigError: the installed version is outside `adapter.versions`.
    """
    installed = version(adapter.framework)
    first, last = adapter.versions
    if not _numbers(first) <= _numbers(installed) < _numbers(last):
        raise ConfigError(
            f"the adapter {adapter.name!r} works with {adapter.framework} from {first} to below "
            f"{last}, and {installed} is installed; change one of the two"
        )


def _numbers(text: str) -> tuple[int, ...]:
    """The release part of a version: "1.2.0rc1" and "1.2" are both (1, 2)."""
    numbers: list[int] = []
    for part in text.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
        if digits != part:
            break
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def describe(agent: object) -> str:
    """How error messages name an agent object."""
    return f"{type(agent).__module__}.{cast('Any', type(agent)).__qualname__}"
