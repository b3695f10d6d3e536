"""Rows that begin alike, packed so that a forward pass computes what they share once.

Rows of a group have their prompt in common, rows of any tasks their system prompt and tools. Invariant: the tokens
before a packed token, along its row, are those of the row, so that hidden states, log-probs and gradients are those
of the rows one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

_Tokens = NDArray[np.int64]

_LEAST_SHARED = 16
"""Tokens below which rows are kept apart: a stretch without context needs no mask."""


@dataclass(frozen=True)
class Stretch:
    """Successive packed tokens that one row adds to those that it shares."""

    start: int
    stop: int
    context: tuple[tuple[int, int], ...]
    """Ranges of the packed tokens before it along its row, in order; none where it begins the row."""


@dataclass(frozen=True)
class PackedRows:
    """Rows as one sequence."""

    tokens: _Tokens
    """(P,) each shared token once."""
    positions: _Tokens
    """(P,) of each token in its row."""
    places: tuple[_Tokens, ...]
    """Per row (T,): where in the packed sequence its tokens are."""
    stretches: tuple[Stretch, ...]
    """Cover the packed sequence, in order."""

    @cached_property
    def pieces(self) -> tuple[int, ...]:
        """Sizes of the pieces that the packed sequence is cut into, so that stretches see whole ones."""
        return tuple(np.diff(self._cuts).tolist())

    @cached_property
    def seen(self) -> tuple[tuple[int, ...], ...]:
        """Of each stretch the numbers of the pieces that it sees, its own last."""
        number = {cut: index for index, cut in enumerate(self._cuts)}
        return tuple(
            tuple(
                piece
                for start, stop in (*one.context, (one.start, one.stop))
                for piece in range(number[start], number[stop])
            )
            for one in self.stretches
        )

    @cached_property
    def _cuts(self) -> list[int]:
        ranges = [part for one in self.stretches for part in (*one.context, (one.start, one.stop))]
        return sorted({0, *(end for part in ranges for end in part)})


def pack(rows: Sequence[_Tokens]) -> PackedRows:
    """Pack rows of token ids, at least one, none of them empty."""
    places: dict[int, _Tokens] = {}
    stretches: list[Stretch] = []
    former, former_places = np.zeros(0, np.int64), np.zeros(0, np.int64)
    total = 0
    for index in _in_order(rows):
        row = rows[index]
        common = _shared(former, row)
        added = len(row) - common
        context = former_places[:common]
        places[index] = np.concatenate([context, np.arange(total, total + added)])
        if added:
            stretches.append(Stretch(total, total + added, _ranges(context)))
        former, former_places, total = row, places[index], total + added
    tokens, positions = np.zeros(total, np.int64), np.zeros(total, np.int64)
    for index, where in places.items():
        tokens[where], positions[where] = rows[index], np.arange(len(where))
    return PackedRows(
        tokens, positions, tuple(places[i] for i in range(len(rows))), tuple(stretches)
    )


def cut_by_shared_tokens(
    rows: Sequence[_Tokens], budget: int, at_least: int = 1
) -> list[list[int]]:
    """Groups of row indices for one pass each, rows that share tokens side by side.

    Args:
        rows: token ids.
        budget: most packed tokens of a group; a longer row is a group of its own.
        at_least: fewest groups, not above the number of rows: the other ranks have as many passes.
    """
    groups: list[list[int]] = []
    used = budget
    former = np.zeros(0, np.int64)
    for index in _in_order(rows):
        added = len(rows[index]) - _shared(former, rows[index])
        if used + added > budget:
            groups.append([])
            used, added = 0, len(rows[index])
        groups[-1].append(index)
        used, former = used + added, rows[index]
    while len(groups) < at_least:
        largest = max(range(len(groups)), key=lambda one: len(groups[one]))
        group, half = groups[largest], len(groups[largest]) // 2
        groups[largest : largest + 1] = [group[:half], group[half:]]
    return groups


def _in_order(rows: Sequence[_Tokens]) -> list[int]:
    """An order in which a row shares most with the one before it."""
    return sorted(range(len(rows)), key=lambda index: rows[index].tolist())


def _shared(former: _Tokens, row: _Tokens) -> int:
    size = min(len(former), len(row))
    differs = np.flatnonzero(former[:size] != row[:size])
    common = int(differs[0]) if differs.size else size
    return common if common >= _LEAST_SHARED else 0


def _ranges(places: _Tokens) -> tuple[tuple[int, int], ...]:
    """Ascending places as ranges."""
    if not places.size:
        return ()
    breaks = np.flatnonzero(np.diff(places) != 1) + 1
    parts = np.split(places, breaks)
    return tuple((int(part[0]), int(part[-1]) + 1) for part in parts)
