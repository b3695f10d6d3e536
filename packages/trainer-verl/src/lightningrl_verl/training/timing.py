"""Where an iteration's wall time goes."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from datetime import datetime

from lightningrl.machine.clock import Clock
from lightningrl_verl.training.metrics import Metrics

Interval = tuple[datetime, datetime]


class Stopwatch:
    """Named phases of one iteration, and when verl was at work."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._started = clock.now()
        self.seconds: dict[str, float] = {}
        """Phase -> seconds."""
        self.verl: list[Interval] = []
        """When a call into verl ran."""

    @contextlib.contextmanager
    def phase(self, name: str, *, verl: bool = False) -> Generator[None]:
        """Measure a phase; `verl` says that it is a call into verl."""
        start = self._clock.now()
        try:
            yield
        finally:
            end = self._clock.now()
            elapsed = (end - start).total_seconds()
            self.seconds[name] = self.seconds.get(name, 0.0) + elapsed
            if verl:
                self.verl.append((start, end))

    def metrics(self, attempts: Sequence[Interval]) -> Metrics:
        """`timing/*`, with `timing/overhead`: see `overhead`.

        Args:
            attempts: start and end of every attempt of the iteration.
        """
        end = self._clock.now()
        whole: Interval = (self._started, end)
        return {
            **{f"timing/{name}_seconds": round(value, 4) for name, value in self.seconds.items()},
            "timing/iteration_seconds": round((end - self._started).total_seconds(), 4),
            "timing/overhead": round(overhead(whole, [*attempts, *self.verl]), 4),
        }


def overhead(whole: Interval, busy: Sequence[Interval]) -> float:
    """The share of `whole` that no interval of `busy` covers; 0 for an empty `whole`."""
    total = (whole[1] - whole[0]).total_seconds()
    if total <= 0:
        return 0.0
    covered = 0.0
    reached = whole[0]
    for start, end in sorted(busy):
        start, end = max(start, reached), min(end, whole[1])
        if end > start:
            covered += (end - start).total_seconds()
            reached = end
    return 1.0 - covered / total
