"""What other credit methods would give a rollout, computed anew from the store.

Methods compare rollouts, so all that the iteration took are read: seconds where it took thousands. That is done once and
kept for every rollout of it.
"""

from __future__ import annotations

import asyncio
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightningrl.cli.scored_run import credits_of
from lightningrl.cli.stored_run import StoredRun
from lightningrl.credit import Credit, assigner_names
from lightningrl.errors import ConfigError
from lightningrl.experience.transition import Transition
from lightningrl.schema import Rollout, RolloutId
from lightningrl.scoring.rules import RULES
from lightningrl.store import Store
from lightningrl.user_input.names import suggest
from lightningrl_ui.sources import Run, Sources
from lightningrl_ui.views.lesson import RolloutLesson
from lightningrl_ui.views.steps import lane_of


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
class MethodsView:
    """Several methods beside one another."""

    waiting: bool
    """They are being computed."""
    methods: tuple[Method, ...] = ()
    agents: Mapping[int, str] | None = None
    """Place -> who took the step."""

    @property
    def places(self) -> list[int]:
        """Places of the steps that any method gave credit."""
        return sorted({place for one in self.methods for place in one.credit})


@dataclass(frozen=True)
class _Iteration:
    """What is kept of a whole iteration: numbers, and no text of the rollouts'."""

    found: Mapping[str, Credit | str]
    own: str
    where: Mapping[RolloutId, tuple[int, int]]
    """Rollout -> its group and its place there."""
    agents: list[list[dict[int, str]]]
    """[group][member]: place of a model call -> whose it was."""


async def methods_view(
    sources: Sources, run: Run, rollout: Rollout, lesson: RolloutLesson, names: Sequence[str]
) -> MethodsView:
    """The run's method and `names` on a rollout, or that they are being computed.

    Raises:
        NotFound: no iteration took any rollout.
        ConfigError: there is no such method, the recipe is not known, or no iteration took the rollout.
    """
    if lesson.iteration is None:
        raise ConfigError(f"there is nothing to compare: {lesson.missing}")
    _check_harmless(run, names)
    make = functools.partial(_compute, await sources.store_apart(run), run, names, lesson.iteration)
    found = await sources.kept.ask(_key(run, names, lesson.iteration), make)
    return MethodsView(waiting=True) if found is None else _of_rollout(found, rollout)


def _key(run: Run, names: Sequence[str], iteration: int) -> tuple[Any, ...]:
    """What changes the answer: what a taken iteration holds stays as it is, and a recipe may change."""
    recipe = None if run.recipe is None else run.recipe.recipe
    return run.store_url, run.name, iteration, tuple(names), repr(recipe)


def _compute(
    connect: Callable[[], Store], run: Run, names: Sequence[str], iteration: int
) -> _Iteration:
    async def compute() -> _Iteration:
        store = connect()
        try:
            stored = StoredRun(run.name, store, run.recipe, run.folder)
            given = await credits_of(stored, names, iteration, only=assigner_names())
        finally:
            await store.close()
        traces = [group.traces for group in given.groups]
        return _Iteration(
            found=given.found,
            own=given.own,
            where={
                one.rollout.id: (g, i)
                for g, members in enumerate(traces)
                for i, one in enumerate(members)
            },
            agents=[[_agents(one.transitions) for one in members] for members in traces],
        )

    return asyncio.run(compute())


def _agents(steps: Sequence[Transition]) -> dict[int, str]:
    known = {one.step_id: one for one in steps}
    return {t: lane_of(one, known) for t, one in enumerate(steps) if one.call is not None}


def _of_rollout(kept: _Iteration, rollout: Rollout) -> MethodsView:
    if rollout.id not in kept.where:
        raise ConfigError("the iteration left the rollout out: nothing can be compared")
    g, i = kept.where[rollout.id]
    agents = kept.agents[g][i]
    methods = tuple(
        _method(name, name == kept.own, found, g, i, list(agents))
        for name, found in kept.found.items()
    )
    return MethodsView(False, methods, agents)


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
