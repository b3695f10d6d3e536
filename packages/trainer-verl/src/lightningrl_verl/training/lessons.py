"""The lesson that an iteration leaves for people: each call's credit and what became of its tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from lightningrl.credit import Credit
from lightningrl.experience.tokens import LogProbs
from lightningrl.experience.trainable import EMPTY
from lightningrl.experience.transition import Group
from lightningrl.lessons import LessonCall, LessonHeader, write_lesson
from lightningrl.recipe import Recipe
from lightningrl.schema import RolloutId
from lightningrl_verl.training.rows import Piece
from lightningrl_verl.training.study import Credited
from lightningrl_verl.worker.learner import Updated

NO_SIGNAL = "its row has no signal: its calls have credit 0, so it would change nothing"
"""Why a call that may be trained is not."""

NO_UPDATE = "its policy was not updated in this iteration"
"""Why a call of a row with signal is not trained: the critic warms up."""

_Spans = dict[tuple[str, RolloutId, int], tuple[LogProbs, LogProbs]]
_NONE = np.zeros(0, np.float32)


def keep_lesson(
    recipe: Recipe,
    run_folder: Path,
    iteration: int,
    credited: Credited,
    updates: Mapping[str, Updated],
) -> None:
    """Write what an iteration was trained on, if the recipe keeps lessons.

    Args:
        recipe: the run's.
        run_folder: where to.
        iteration: that was trained.
        credited: its groups and rows.
        updates: of the policies that were changed, by alias.
    """
    assert recipe.algorithm is not None
    if not recipe.trainer.keep_lessons:
        return
    header = LessonHeader(
        run=recipe.name,
        iteration=iteration,
        credit=recipe.algorithm.credit,
        credit_args=recipe.algorithm.credit_args,
    )
    calls = list(lesson_calls(credited, updates))
    write_lesson(run_folder, header, calls, keep=recipe.trainer.keep_lessons)


def lesson_calls(credited: Credited, updates: Mapping[str, Updated]) -> Iterator[LessonCall]:
    """Each model call of the groups, in order."""
    spans = _spans(credited, updates)
    rows = _row_numbers(credited.groups, credited.pieces)
    for g, group in enumerate(credited.groups):
        for i, trace in enumerate(group.traces):
            spec = trace.rollout.spec
            for t, one in enumerate(trace.transitions):
                if one.call is None:
                    continue
                key = (one.call.policy, trace.rollout.id, t)
                reason = one.untrainable or (None if one.token_bytes else EMPTY)
                if reason is None and key not in spans:
                    reason = NO_UPDATE if credited.credit[g][i][t] else NO_SIGNAL
                engine, trainer = spans.get(key, (_NONE, _NONE))
                yield LessonCall(
                    group_id=group.group_id,
                    task_id=spec.task_id,
                    rollout_id=trace.rollout.id,
                    member=spec.member,
                    attempt_id=trace.attempt.id,
                    step_id=one.step_id,
                    call_id=one.call.id,
                    place=t,
                    agent=one.agent_path,
                    policy=one.call.policy,
                    version=one.call.version_end,
                    reward=trace.reward,
                    step_reward=one.reward,
                    credit=credited.credit[g][i][t],
                    parts=_parts(credited.credit, g, i, t),
                    state=_state(credited.credit, g, i, t),
                    tokens=len(one.token_ids),
                    reason=reason,
                    row=rows.get(key),
                    engine_log_probs=engine,
                    trainer_log_probs=trainer,
                )


def _spans(credited: Credited, updates: Mapping[str, Updated]) -> _Spans:
    """(policy, rollout, place of a call) -> its log-probs by engine and trainer; of calls that were trained."""
    return {
        (alias, row.rollout_id, span.index): (
            row.logprobs[span.start : span.stop],
            now[span.start : span.stop],
        )
        for alias, updated in updates.items()
        for row, now in zip(credited.lesson.rows[alias], updated.log_probs, strict=True)
        for span in row.spans
    }


def _row_numbers(
    groups: Sequence[Group], pieces: Mapping[str, Sequence[Piece]]
) -> dict[tuple[str, RolloutId, int], int]:
    """(policy, rollout, place of a call) -> which of the rollout's rows it stands in."""
    return {
        (alias, groups[piece.group].traces[piece.trace].rollout.id, span.index): number
        for alias, of_policy in pieces.items()
        for piece in of_policy
        for number, row in enumerate(piece.merged.rows)
        for span in row.spans
    }


def _parts(credit: Credit, g: int, i: int, t: int) -> dict[str, float]:
    found = {name: numbers[g][i][t] for name, numbers in credit.parts.items()}
    return {name: value for name, value in found.items() if not math.isnan(value)}


def _state(credit: Credit, g: int, i: int, t: int) -> int | None:
    if credit.states is None or credit.states[g][i][t] < 0:
        return None
    return credit.states[g][i][t]
