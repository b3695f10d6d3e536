"""Credit: what a credit assigner returns, and its ways to report on it.

Invariant: a `Credit` is a plain nested list; whoever only wants the numbers never sees the metrics.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

Numbers = list[list[list[float]]]
"""`numbers[g][i][t]`, aligned with `groups[g].traces[i].transitions[t]`."""


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
        parts: Mapping[str, Numbers] | None = None,
        states: list[list[list[int]]] | None = None,
    ) -> None:
        super().__init__(values)
        self.metrics: dict[str, float] = dict(metrics or {})
        """Finite numbers by name, without the prefix `credit/`."""
        self.unfit = unfit
        """Why these groups don't suit the method, and what to do. `None`: they do. A run whose first iteration
        doesn't suit its method is refused; a later one, which may differ by chance, gets the credit as it is."""
        self.parts: dict[str, Numbers] = dict(parts or {})
        """For people: name -> what each number was made of, aligned like the credit. NaN where there is no such
        part."""
        self.states = states
        """For people: aligned like the credit, equal numbers were compared as one state; -1 where there was none.
        `None`: the method compared no states."""
