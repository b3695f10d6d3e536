"""The credit of a rollout's steps: what it was made of, whom it was compared with, and what other methods would give."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lightningrl.cli.scored_run import credits_of
from lightningrl.cli.stored_run import StoredRun
from lightningrl.credit import Credit, assigner_names
from lightningrl.errors import ConfigError
from lightningrl.lessons import LessonCall, read_lesson
from lightningrl.schema import Rollout
from lightningrl.scoring.rules import RULES
from lightningrl.store import Store
from lightningrl.user_input.names import suggest
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
class Method:
    """What one method gives the rollout's calls, computed anew from the store."""

    name: str
    own: bool
    """Whether it is the run's."""
    problem: str
    """Why it gives nothing; empty where it does."""
    credit: dict[int, float]
    """Place among the steps -> credit."""
    parts: dict[int, dict[str, float]]
    most: float
    """The largest credit in size."""


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
    methods: tuple[Method, ...]
    agents: dict[int, str]
    """Place -> who took the step; of the methods' steps."""
    places: tuple[int, ...]
    """Those that any method gave credit."""
    state: tuple[LessonCall, ...]
    """The calls of the state that was asked for, in the whole iteration."""


async def credit_view(
    store: Store, run: Run, ident: str, names: Sequence[str], state: int | None
) -> CreditView:
    """The credit of a rollout.

    Args:
        store: the run's.
        run: the run.
        ident: of the rollout.
        names: methods to compare on the stored rollouts; none are computed if empty.
        state: whose calls are shown. `None`: of none.

    Raises:
        NotFound: there is no such rollout, or no iteration took any.
        ConfigError: there is no such method, or the recipe is not known.
    """
    rollout = await find_rollout(store, run, ident)
    lesson = await rollout_lesson(store, run, rollout)
    calls = tuple(sorted(lesson.calls.values(), key=lambda one: one.place))
    methods, agents = await _methods(store, run, rollout, lesson, names) if names else ((), {})
    return CreditView(
        rollout=rollout,
        lesson=lesson,
        calls=calls,
        parts=tuple(dict.fromkeys(name for one in calls for name in one.parts)),
        most=max([abs(one.credit) for one in calls], default=0.0),
        baselines=tuple(_baselines(calls)),
        methods=methods,
        agents=agents,
        places=tuple(sorted({place for one in methods for place in one.credit})),
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


def _check_harmless(run: Run, names: Sequence[str]) -> None:
    """Refuse what would run code that an address or somebody's recipe names, or ask a judge.

    Raises:
        ConfigError: so it would.
    """
    known = assigner_names()
    for name in names:
        if name not in known:
            raise ConfigError(
                f"no credit assigner {name!r} is installed.{suggest(name, known)} One in a module is compared by"
                " `lightningrl credit`"
            )
    rewards = () if run.recipe is None else run.recipe.recipe.step_rewards
    own = [one.rule for one in rewards if one.rule not in RULES]
    if own:
        raise ConfigError(
            f"step rewards of this run come from {own[0]!r}, which the page does not run; use `lightningrl credit`"
        )


async def _methods(
    store: Store, run: Run, rollout: Rollout, lesson: RolloutLesson, names: Sequence[str]
) -> tuple[tuple[Method, ...], dict[int, str]]:
    if lesson.iteration is None:
        raise ConfigError(f"there is nothing to compare: {lesson.missing}")
    _check_harmless(run, names)
    given = await credits_of(
        StoredRun(run.name, store, run.recipe, run.folder),
        names,
        lesson.iteration,
        only=assigner_names(),
    )
    for g, group in enumerate(given.groups):
        for i, trace in enumerate(group.traces):
            if trace.rollout.id != rollout.id:
                continue
            decided = [t for t, one in enumerate(trace.transitions) if one.call is not None]
            methods = tuple(
                _method(name, name == given.own, found, g, i, decided)
                for name, found in given.found.items()
            )
            return methods, {t: trace.transitions[t].agent_path or NOBODY for t in decided}
    raise ConfigError(f"iteration {lesson.iteration} left the rollout out: nothing can be compared")


def _method(
    name: str, own: bool, found: Credit | str, g: int, i: int, decided: Sequence[int]
) -> Method:
    if isinstance(found, str):
        return Method(name, own, found, {}, {}, 0.0)
    credit = {t: found[g][i][t] for t in decided}
    parts = {
        t: {part: numbers[g][i][t] for part, numbers in found.parts.items()
            if not math.isnan(numbers[g][i][t])}
        for t in decided
    }  # fmt: skip
    return Method(name, own, "", credit, parts, max(map(abs, credit.values()), default=0.0))
