"""Which slots hold the keys and values of which tokens, and from where a new prompt takes its beginning.

A prompt's beginning stands in a slot already where a conversation goes on, or where another prompt begins alike:
that of another rollout of the group, or one with the same system prompt and tools. Invariant: `Seat.start`
columns of a seat's slot hold what the model computes for the prompt's first tokens under the weights in use, once
the seat's wave begins and its copy is made.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Tokens: TypeAlias = NDArray[np.int32]

LEAST_SHARED = 16
"""Tokens below which a beginning is computed anew rather than copied from another slot."""

_NONE: Tokens = np.zeros(0, np.int32)


@dataclass(frozen=True, slots=True)
class Seat:
    """Where a prompt is put."""

    slot: int
    start: int
    """Tokens that need no prefill; at least one always does."""
    source: int | None = None
    """Slot whose columns `0 .. start-1` are to be copied; `None`: they stand in `slot`, or there are none."""
    wave: int = 0
    """Copies and prefills of a wave come after those of the waves before it, whose columns they use."""


class SlotPool:
    """All slots: the free ones with the tokens that they still hold, the taken ones with their prompts."""

    def __init__(self, slots: int) -> None:
        """All slots start free and empty."""
        self._free: dict[int, Tokens] = dict.fromkeys(range(slots), _NONE)
        """In the order in which they became free."""
        self._taken: dict[int, Tokens] = {}

    def __len__(self) -> int:
        """How many slots are free."""
        return len(self._free)

    def take(self, prompts: Sequence[Sequence[int]]) -> list[tuple[int, Seat]]:
        """A slot for each prompt, of which there are at most as many as slots are free.

        A slot all of whose tokens begin a prompt is that prompt's. Other prompts take the slots that have been
        free for longest, with a copy of the longest beginning that stands in any slot, or will when a prompt
        that is seated with them is computed.

        Returns:
            Index of each prompt and its seat, in the order in which the copies of a wave must be made.
        """
        ids = [np.asarray(prompt, np.int32) for prompt in prompts]
        seats: dict[int, Seat] = {}
        for index, prompt in enumerate(ids):
            slot = self._continued(prompt)
            if slot is not None:
                seats[index] = Seat(slot, len(self._free.pop(slot)))
        # In this order a prompt shares most with the one before it.
        former: list[tuple[Seat, Tokens]] = []
        for index in sorted(range(len(ids)), key=lambda one: prompts[one]):
            if index not in seats:
                seats[index] = self._seat(ids[index], former)
            former.append((seats[index], ids[index]))
        # Only now: what they will hold is not computed yet.
        self._taken |= {seat.slot: ids[index] for index, seat in seats.items()}
        return list(seats.items())

    def give(self, slot: int, held: Sequence[int]) -> None:
        """Frees a slot; `held` are the tokens it may be reused for (empty = none)."""
        self._taken.pop(slot, None)
        self._free[slot] = np.asarray(held, np.int32)

    def forget(self) -> None:
        """Drops what the slots hold: their keys and values belong to former weights."""
        self._free = dict.fromkeys(self._free, _NONE)
        self._taken.clear()

    def _continued(self, prompt: Tokens) -> int | None:
        """The free slot that holds the longest whole beginning of a prompt."""
        best, most = None, 0
        for slot, held in self._free.items():
            size = len(held)
            if most < size < len(prompt) and shared(prompt, held) == size:
                best, most = slot, size
        return best

    def _seat(self, prompt: Tokens, former: Sequence[tuple[Seat, Tokens]]) -> Seat:
        source, most, wave = None, 0, 0
        for slot, held in (*self._taken.items(), *self._free.items()):
            size = shared(prompt, held) if len(held) > most else 0
            if size > most:
                source, most = slot, size
        if former and shared(prompt, former[-1][1]) > most:
            most = shared(prompt, former[-1][1])
            first = _first_computed(prompt, most, former)
            source, wave = first.slot, first.wave + 1
        slot = next(iter(self._free))
        del self._free[slot]
        # The last token is computed in any case: its logits are what is asked for.
        start = min(most, len(prompt) - 1)
        if start < LEAST_SHARED:
            return Seat(slot, 0)
        return Seat(slot, start, None if source == slot else source, wave)


def _first_computed(prompt: Tokens, size: int, former: Sequence[tuple[Seat, Tokens]]) -> Seat:
    """Of the seats whose prompts begin with the same `size` tokens one of the first wave; the last is one of them."""
    best = former[-1][0]
    for seat, ids in reversed(former):
        if len(ids) < size or not np.array_equal(ids[:size], prompt[:size]):
            break
        if seat.wave < best.wave:
            best = seat
    return best


def shared(left: Tokens, right: Tokens) -> int:
    """How many first tokens are the same."""
    size = min(len(left), len(right))
    differs = left[:size] != right[:size]
    first = int(differs.argmax()) if size else 0
    return first if size and differs[first] else size
