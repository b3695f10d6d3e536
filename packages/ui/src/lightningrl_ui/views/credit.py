"""The credit of a rollout's steps: what it was made of, and whom it was compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightningrl.lessons import LessonCall, read_lesson
from lightningrl.schema import Rollout
from lightningrl.store import Store
from lightningrl_ui.sources import Run
from lightningrl_ui.views.lesson import RolloutLesson, rollout_lesson
from lightningrl_ui.views.rollout import find_rollout
from lightningrl_ui.views.steps import NOBODY


@dataclass(frozen=True)
class Baseline:
    """What the calls of one agent were compared with, in this rollout."""

    agent: str
    calls: int
    least: float
    most: float


@dataclass(frozen=True)
class CreditView:
    """A rollout's credit."""

    rollout: Rollout
    lesson: RolloutLesson
    calls: tuple[LessonCall, ...]
    """In order of their start."""
    parts: tuple[str, ...]
    """Names of all parts."""
    most: float
    baselines: tuple[Baseline, ...]
    state: tuple[LessonCall, ...]
    """The calls of the state that was asked for, in the whole iteration."""


async def credit_view(store: Store, run: Run, ident: str, state: int | None) -> CreditView:
    """The credit of a rollout.

    Args:
        store: the run's.
        run: the run.
        ident: of the rollout.
        state: whose calls are shown. `None`: of none.

    Raises:
        NotFound: there is no such rollout.
    """
    rollout = await find_rollout(store, run, ident)
    lesson = await rollout_lesson(store, run, rollout)
    calls = tuple(sorted(lesson.calls.values(), key=lambda one: one.place))
    return CreditView(
        rollout=rollout,
        lesson=lesson,
        calls=calls,
        parts=tuple(dict.fromkeys(name for one in calls for name in one.parts)),
        most=max([abs(one.credit) for one in calls], default=0.0),
        baselines=tuple(_baselines(calls)),
        state=_of_state(run, lesson, state),
    )


def _baselines(calls: Sequence[LessonCall]) -> list[Baseline]:
    of_agent: dict[str, list[float]] = {}
    for one in calls:
        if "baseline" in one.parts:
            of_agent.setdefault(one.agent or NOBODY, []).append(one.parts["baseline"])
    return [Baseline(who, len(all_), min(all_), max(all_)) for who, all_ in of_agent.items()]


def _of_state(run: Run, lesson: RolloutLesson, state: int | None) -> tuple[LessonCall, ...]:
    if state is None or run.folder is None or lesson.iteration is None:
        return ()
    found = read_lesson(run.folder, lesson.iteration)
    return () if found is None else tuple(one for one in found[1] if one.state == state)
