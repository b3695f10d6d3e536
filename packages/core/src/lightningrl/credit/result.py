"""Credit: what a credit assigner returns, and its two ways to report on it.

Invariant: a `Credit` is a plain nested list; whoever only wants the numbers never sees the metrics.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping


class Credit(list[list[list[float]]]):
    """`credit[g][i][t]`, the final advantage of `groups[g].traces[i].transitions[t]`, and metrics.

    An assigner that has something to report returns this instead of a list; it stays a pure function.
    The trainer writes the metrics into the iteration's line as `credit/NAME`.
    """

    def __init__(
        self,
        values: Iterable[list[list[float]]] = (),
        metrics: Mapping[str, float] | None = None,
        unfit: str | None = None,
    ) -> None:
        super().__init__(values)
        self.metrics: dict[str, float] = dict(metrics or {})
        """Finite numbers by name, without the prefix `credit/`."""
        self.unfit = unfit
        """Why these groups don't suit the method, and what to do. `None`: they do. A run whose first iteration
        doesn't suit its method is refused; a later one, which may differ by chance, gets the credit as it is."""
