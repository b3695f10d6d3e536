"""From taken groups to changed weights: values, credit, rows, updates.

Invariant: credit is computed once, for all policies together, from values of before any update; then each
policy is trained on the rows of its own calls alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lightningrl.credit import (
    Credit,
    CreditAssigner,
    State,
    StatefulAssigner,
    Values,
    assign_with,
    cut_off,
)
from lightningrl.errors import RunError
from lightningrl.experience.drift import joined
from lightningrl.experience.trainable import count_calls
from lightningrl.experience.trained_calls import as_trained, lenses
from lightningrl.experience.transition import Group
from lightningrl.recipe import Algorithm, Optimiser, Recipe
from lightningrl.scoring import Scorer
from lightningrl_verl.serving.policy import ServedPolicy
from lightningrl_verl.training.learn import Lesson, has_regulariser, prepare
from lightningrl_verl.training.metrics import Metrics
from lightningrl_verl.training.rows import Piece, behind, cut
from lightningrl_verl.worker.learner import Learner, Updated


@dataclass
class Trainee:
    """A policy that is trained."""

    alias: str
    learner: Learner
    policy: ServedPolicy
    version: int
    """Of the learner's weights; the engine follows at the sync."""


@dataclass(frozen=True)
class Credited:
    """What one iteration gives to train on."""

    lesson: Lesson
    groups: Sequence[Group]
    """As the credit assigner was given them: calls that train no policy are marked."""
    credit: Credit
    """Of the groups' transitions."""
    pieces: Mapping[str, Sequence[Piece]]
    values: Values | None
    """NaN where a transition is not trained. `None`: the method needs none."""
    targets: Values | None
    """For the critics, aligned with the values."""
    state: State
    """Of the credit assigner, for the next iteration."""


class Study:
    """How a recipe turns groups into updates."""

    def __init__(
        self,
        recipe: Recipe,
        assigner: CreditAssigner | StatefulAssigner,
        trainees: Sequence[Trainee],
        scorer: Scorer,
    ) -> None:
        assert recipe.algorithm is not None
        self._recipe = recipe
        self._algorithm: Algorithm = recipe.algorithm
        self._assigner = assigner
        self._trainees = trainees
        self._scorer = scorer

    @property
    def initial_state(self) -> State:
        """The credit assigner's state before the first iteration; empty if it keeps none."""
        assigner = self._assigner
        return assigner.initial_state() if isinstance(assigner, StatefulAssigner) else {}

    async def credit(
        self, groups: Sequence[Group], state: State, *, first: bool = False
    ) -> Credited:
        """Step rewards, values, credit and rows; changes nothing.

        Args:
            groups: what the iteration took.
            state: of the credit assigner.
            first: it is the run's first iteration.

        Raises:
            RunError: the first iteration doesn't suit the method (`Credit.unfit`), or a method failed.
        """
        scored = await self._scorer.score(groups)
        groups = scored.groups
        seen_by = lenses(
            self._recipe.policies,
            versions={one.alias: one.version for one in self._trainees},
            max_staleness=self._algorithm.max_staleness,
        )
        pieces = cut(groups, seen_by)
        values = await self._values(groups, pieces)
        trained = as_trained(groups, seen_by)
        outcome = assign_with(
            self._assigner,
            trained,
            self._algorithm.credit_args,
            state=state,
            values=values,
            ends=await self._ends(groups, pieces),
        )
        if first and outcome.credit.unfit is not None:
            raise RunError(
                f"algorithm.credit: {self._algorithm.credit}: in the run's first iteration"
                f" {outcome.credit.unfit}"
            )
        lesson = prepare(
            groups,
            pieces,
            outcome.credit,
            count_calls(
                one for group in trained for trace in group.traces for one in trace.transitions
            ),
            per_call=self._algorithm.rows == "calls",
            share=self._algorithm.loss_share,
            keep_all=[one.alias for one in self._trainees if has_regulariser(self._optimiser(one))],
        )
        lesson.metrics.update({f"step_reward/{name}": one for name, one in scored.metrics.items()})
        return Credited(
            lesson, trained, outcome.credit, pieces, values, outcome.targets, outcome.state
        )

    async def train(
        self, trainee: Trainee, credited: Credited, iteration: int
    ) -> tuple[Metrics, Updated | None]:
        """Train one policy, and its critic first; its version rises if its weights changed.

        Returns:
            `actor/*` and `critic/*`, without the policy's name; and what the update said of each of the lesson's
            rows, `None` where the policy was not trained.
        """
        metrics: Metrics = {}
        if credited.values is not None and credited.targets is not None:
            fitted = await self._fit(trainee, credited)
            metrics |= {f"critic/{name}": value for name, value in fitted.items()}
        critic = self._recipe.critic
        rows = credited.lesson.rows[trainee.alias]
        if not rows or (critic is not None and iteration <= critic.warmup):
            return metrics, None
        updated = await trainee.learner.update(rows)
        trainee.version += 1
        metrics |= {f"actor/{name}": value for name, value in updated.metrics.items()}
        gap = joined(updated.gaps)
        if gap is not None:
            metrics |= {"actor/log_prob_gap": gap.mean, "actor/log_prob_gap_max": gap.max}
        return metrics, updated

    async def _values(
        self, groups: Sequence[Group], pieces: Mapping[str, Sequence[Piece]]
    ) -> Values | None:
        """What the policies' critics say of the calls that are trained; NaN for all other transitions.

        Raises:
            RunError: a value isn't finite.
        """
        if not (isinstance(self._assigner, StatefulAssigner) and self._assigner.needs_values):
            return None
        values = [
            [[math.nan] * len(trace.transitions) for trace in group.traces] for group in groups
        ]
        for trainee in self._trainees:
            of_policy = pieces[trainee.alias]
            rows = [row for piece in of_policy for row in piece.merged.rows]
            answers = await trainee.learner.values(rows)
            if not all(math.isfinite(value) for of_row in answers for value in of_row):
                raise RunError(
                    f"the critic of policy {trainee.alias!r} values calls at NaN or infinity; resume from an"
                    " earlier checkpoint with a lower 'critic.learning_rate'"
                )
            found = iter(answers)
            for piece in of_policy:
                for row in piece.merged.rows:
                    for span, value in zip(row.spans, next(found), strict=True):
                        values[piece.group][piece.trace][span.index] = value
        return values

    async def _ends(
        self, groups: Sequence[Group], pieces: Mapping[str, Sequence[Piece]]
    ) -> Values | None:
        """What the critics expect behind answers that were cut off; 0 elsewhere."""
        if not (isinstance(self._assigner, StatefulAssigner) and self._assigner.needs_ends):
            return None
        ends = [[[0.0] * len(trace.transitions) for trace in group.traces] for group in groups]
        for trainee in self._trainees:
            last = [cut_off(groups[one.group].traces[one.trace]) for one in pieces[trainee.alias]]
            placed = [
                (piece, row, span)
                for piece, cut_call in zip(pieces[trainee.alias], last, strict=True)
                for row in piece.merged.rows
                for span in row.spans
                if span.index == cut_call
            ]
            found = await trainee.learner.values([behind(row, span) for _, row, span in placed])
            for (piece, _, span), (value,) in zip(placed, found, strict=True):
                ends[piece.group][piece.trace][span.index] = value
        return ends

    async def _fit(self, trainee: Trainee, credited: Credited) -> dict[str, float]:
        assert credited.values is not None
        assert credited.targets is not None
        placed = [
            (piece, row) for piece in credited.pieces[trainee.alias] for row in piece.merged.rows
        ]
        if not placed:
            return {}
        return await trainee.learner.fit(
            [row for _, row in placed],
            *(
                [
                    [numbers[piece.group][piece.trace][span.index] for span in row.spans]
                    for piece, row in placed
                ]
                for numbers in (credited.values, credited.targets)
            ),
        )

    def _optimiser(self, trainee: Trainee) -> Optimiser:
        found = self._recipe.policies[trainee.alias].optimiser or self._recipe.optimiser
        assert found is not None
        return found
