"""CPU time and memory of a server: of its process and of all processes below it."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from dataclasses import dataclass

import psutil


@dataclass(slots=True)
class Spent:
    """CPU time used while a `Meter` ran."""

    cpu_ms: float = 0.0


class Meter:
    """Meters the process tree of one server."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)

    @contextlib.contextmanager
    def cpu(self) -> Generator[Spent]:
        """User and system time that the tree uses in the block.

        The kernel counts in hundredths of a second: measure a second or more.
        """
        spent = Spent()
        before = self._cpu_seconds()
        yield spent
        spent.cpu_ms = 1e3 * (self._cpu_seconds() - before)

    def resident_bytes(self) -> int:
        """Resident memory of the tree."""
        return sum(process.memory_info().rss for process in self._tree())

    def _cpu_seconds(self) -> float:
        times = [process.cpu_times() for process in self._tree()]
        return sum(one.user + one.system for one in times)

    def _tree(self) -> list[psutil.Process]:
        return [self._process, *self._process.children(recursive=True)]
