"""Which demonstrations are held out, and which share an update: pure functions of the seed.

Invariant: an update's examples depend on material, settings and its number alone, so that a resumed run repeats what was
lost. In an epoch every example stands in one update.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import TypeVar

from lightningrl.recipe import WarmStart
from lightningrl_verl.supervised.rows import Example, Material, check_trained, left_out

_T = TypeVar("_T")


def material(examples: Sequence[Example], held_out: float, *, seed: int) -> Material:
    """Hold some demonstrations out, all of a key together; those without a row are left out of both parts.

    Args:
        examples: of all dialogues.
        held_out: share of the keys; above 0 it is at least one of several, and one is always trained on.
        seed: decides which.

    Raises:
        NothingTrainable: no example has a row.
    """
    check_trained(examples)
    usable = [one for one in examples if one.rows]
    keys = list(dict.fromkeys(one.key for one in usable))
    count = min(max(round(held_out * len(keys)), int(held_out > 0)), len(keys) - 1)
    chosen = set(random.Random(f"{seed}/held out").sample(keys, count))
    return Material(
        train=tuple(one for one in usable if one.key not in chosen),
        held_out=tuple(one for one in usable if one.key in chosen),
        drift=tuple(one.drift for one in examples),
        left_out=left_out(examples),
    )


class Course:
    """The updates of a fine-tuning, numbered from 1."""

    def __init__(self, settings: WarmStart, examples: int, *, seed: int) -> None:
        """`examples` is how many there are to train on, at least one; `seed` decides their order."""
        self._examples = examples
        self._seed = seed
        self.per_epoch = -(-examples // settings.batch_size)
        """Updates of an epoch. They share its examples evenly: none is left a few of them."""
        self.updates = settings.epochs * self.per_epoch
        """Of all."""
        self._every = settings.score_every or self.per_epoch

    def batch(self, update: int) -> list[int]:
        """Indices of the examples of an update; each epoch has an order of its own."""
        epoch, place = divmod(update - 1, self.per_epoch)
        order = list(range(self._examples))
        random.Random(f"{self._seed}/{epoch}").shuffle(order)
        return even_parts(order, self.per_epoch)[place]

    def epoch(self, update: int) -> float:
        """Epochs that are done after an update."""
        return update / self.per_epoch

    def due(self, update: int) -> bool:
        """Whether an update is followed by a score, and in a run of its own by a checkpoint."""
        return update == self.updates or update % self._every == 0


def even_parts(items: Sequence[_T], count: int) -> list[list[_T]]:
    """Cut into `count` parts whose lengths differ by at most one."""
    size, longer = divmod(len(items), count)
    starts = [part * size + min(part, longer) for part in range(count + 1)]
    return [list(items[a:b]) for a, b in itertools.pairwise(starts)]
