"""The checks that `try` and `doctor` have as well, asked while a run trains.

Invariant: a kind is said once in a start, where it is first seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from lightningrl.checks import Evidence, Finding, Level, Place, examine, few_trainable
from lightningrl.experience.trainable import TrainableCalls
from lightningrl.recipe import Recipe
from lightningrl.traces import AttemptRecord

SAMPLE = 64
"""Rollouts that are looked at, at most."""


class Checkup:
    """What was found, and whether it was said."""

    def __init__(self, recipe: Recipe, say: Callable[[str], None]) -> None:
        self._recipe = recipe
        self._say = say
        self._said: set[str] = set()

    def rollouts(
        self,
        records: Sequence[Sequence[AttemptRecord]],
        *,
        unidentified: Mapping[str, int] | None = None,
    ) -> None:
        """Examine the attempts of rollouts that have ended, the newest first.

        Args:
            records: of each rollout; none is fine.
            unidentified: see `Evidence.unidentified`. `None`: it was not asked for.
        """
        sample = tuple(map(tuple, records[:SAMPLE]))
        evidence = Evidence(self._recipe.name, sample, self._recipe, unidentified or {}, code=True)
        self._tell(examine(evidence, Place.TRAIN))

    def calls(self, counted: TrainableCalls) -> None:
        """Look at how many of an iteration's calls may be trained."""
        finding = few_trainable(counted, self._recipe.guards)
        self._tell([] if finding is None else [finding])

    def _tell(self, findings: Sequence[Finding]) -> None:
        for one in findings:
            if one.kind not in self._said:
                mark = "✗" if one.level is Level.PROBLEM else "!"
                self._say(f"{mark} {one.kind}: {one.evidence}\n  → {one.remedy}")
        self._said.update(one.kind for one in findings)
