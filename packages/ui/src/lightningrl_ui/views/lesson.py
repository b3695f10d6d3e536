"""What the lesson of an iteration says of a rollout, and why there may be none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lightningrl.lessons import LessonCall, LessonHeader, kept_lessons, read_lesson
from lightningrl.schema import EventId, Mode, Rollout
from lightningrl.store import Store
from lightningrl_ui.sources import Run


@dataclass(frozen=True)
class RolloutLesson:
    """A rollout's part of a lesson."""

    iteration: int | None
    """That took it. `None`: none did."""
    header: LessonHeader | None
    calls: Mapping[EventId, LessonCall]
    missing: str
    """Why there is none; empty where there is one."""


async def rollout_lesson(
    store: Store, run: Run, rollout: Rollout, *, log_probs: bool = False
) -> RolloutLesson:
    """What was learned from a rollout.

    Args:
        store: the run's.
        run: the run.
        rollout: of the run.
        log_probs: read those of its tokens as well.

    Raises:
        ConfigError: the lesson can't be read.
    """
    mode = rollout.spec.mode
    if mode not in (Mode.TRAIN, Mode.LIVE):
        return _none(None, f"rollouts of mode {mode.value} are scored and never trained")
    iteration = await _taken_by(store, run, rollout)
    if iteration is None:
        return _none(None, "no iteration has taken it (yet)")
    if run.folder is None:
        return _none(iteration, "lessons are in the run's folder, which is not known here")
    found = read_lesson(run.folder, iteration, rollouts={rollout.id}, log_probs=log_probs)
    if found is None:
        kept = kept_lessons(run.folder)
        those = f"; kept are {kept[0]} to {kept[-1]}" if kept else ""
        return _none(
            iteration, f"no lesson of iteration {iteration} is kept (trainer.keep_lessons){those}"
        )
    header, calls = found
    missing = "" if calls else f"the iteration {iteration} left it out"
    return RolloutLesson(iteration, header, {one.call_id: one for one in calls}, missing)


async def _taken_by(store: Store, run: Run, rollout: Rollout) -> int | None:
    """The iteration that took a rollout; of one enqueued for training the only one that can have."""
    if rollout.spec.mode is Mode.TRAIN:
        return rollout.spec.iteration
    entries = await store.ledger(run.name, group_id=rollout.spec.group_id)
    return entries[-1].iteration if entries else None


def _none(iteration: int | None, why: str) -> RolloutLesson:
    return RolloutLesson(iteration, None, {}, why)
