"""Which slots hold the keys and values of which tokens, and from where a new prompt takes its beginning.

A prompt's beginning stands in a slot already where a conversation goes on, or where another prompt begins alike:
that of another rollout of the group, or one with the same system prompt and tools. Invariant: `Seat.start`
columns of a seat's slot hold what the model computes for the prompt's first tokens under the weights in use, once
the seat's wave begins and its copy is made.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEAST_SHARED = 16
"""Tokens below which a beginning is computed anew rather than copied from another slot."""

_BYTES = array("i").itemsize
"""Of a token. Tokens are compared as bytes, which costs next to nothing where they differ early."""


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
        self._free: dict[int, bytes] = dict.fromkeys(range(slots), b"")
        """Slot to its tokens, in the order in which they became free."""
        self._taken: dict[int, bytes] = {}

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
        ids = [_tokens(prompt) for prompt in prompts]
        seats: dict[int, Seat] = {}
        for index, prompt in enumerate(ids):
            slot = self._continued(prompt)
            if slot is not None:
                seats[index] = Seat(slot, len(self._free.pop(slot)) // _BYTES)
        # In this order a prompt shares most with the one before it.
        former: list[tuple[Seat, bytes]] = []
        for index in sorted(range(len(ids)), key=lambda one: list(prompts[one])):
            if index not in seats:
                seats[index] = self._seat(ids[index], former)
            former.append((seats[index], ids[index]))
        # Only now: what they will hold is not computed yet.
        self._taken |= {seat.slot: ids[index] for index, seat in seats.items()}
        return list(seats.items())

    def give(self, slot: int, held: Sequence[int]) -> None:
        """Frees a slot; `held` are the tokens it may be reused for (empty = none)."""
        self._taken.pop(slot, None)
        self._free[slot] = _tokens(held)

    def forget(self) -> None:
        """Drops what the slots hold: their keys and values belong to former weights."""
        self._free = dict.fromkeys(self._free, b"")
        self._taken.clear()

    def _continued(self, prompt: bytes) -> int | None:
        """The free slot that holds the longest whole beginning of a prompt."""
        best, most = None, 0
        for slot, held in self._free.items():
            if most < len(held) < len(prompt) and prompt.startswith(held):
                best, most = slot, len(held)
        return best

    def _seat(self, prompt: bytes, former: Sequence[tuple[Seat, bytes]]) -> Seat:
        # The last token is computed in any case: its logits are what is asked for.
        source, start, wave = None, 0, 0
        needed = len(prompt) // _BYTES - 1
        for slot, held in (*self._taken.items(), *self._free.items()):
            if start == needed:
                break
            size = min(shared(prompt, held), needed)
            if size > start:
                source, start = slot, size
        if former and min(shared(prompt, former[-1][1]), needed) > start:
            start = min(shared(prompt, former[-1][1]), needed)
            first = _first_computed(prompt[: start * _BYTES], former)
            source, wave = first.slot, first.wave + 1
        slot = next(iter(self._free))
        del self._free[slot]
        return Seat(slot, start, None if source == slot else source, wave)


def _first_computed(beginning: bytes, former: Sequence[tuple[Seat, bytes]]) -> Seat:
    """Of the seats whose prompts begin so one of the first wave; the last is one of them."""
    best = former[-1][0]
    for seat, ids in reversed(former):
        if not ids.startswith(beginning):
            break
        if seat.wave < best.wave:
            best = seat
    return best


def shared(left: bytes, right: bytes) -> int:
    """How many first tokens are the same; 0 for less than `LEAST_SHARED`."""
    least = LEAST_SHARED * _BYTES
    if len(left) < least or left[:least] != right[:least]:
        return 0
    size = min(len(left), len(right)) // _BYTES
    differs = np.frombuffer(left, np.int32, size) != np.frombuffer(right, np.int32, size)
    first = int(differs.argmax())
    return first if differs[first] else size


def _tokens(ids: Sequence[int]) -> bytes:
    return array("i", ids).tobytes()
