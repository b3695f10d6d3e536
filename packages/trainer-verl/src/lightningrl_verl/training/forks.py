"""Forks of an iteration's rollouts: chosen, run and awaited before anything of the iteration is taken.

Invariants:
- Which steps are forked follows from the recorded rollouts, and a branch's id from its parent, step and number; what the
  store has once is not chosen anew. So a start after a crash goes on with the branches of the one before.
- A branch that did not follow its trunk to the end is never trained: its attempt failed (`diverged`), or, where its agent
  ended without asking at the fork, the group of its fork point is skipped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from msgspec import structs

from lightningrl.credit.fork_points import choose, find_rule
from lightningrl.errors import RunError
from lightningrl.experience.forks import Replay, replay_of, trunk_of
from lightningrl.experience.transition import Group, Trace, Transition, final_reward
from lightningrl.recipe import Forks, Recipe
from lightningrl.schema import (
    BRANCH,
    AttemptId,
    AttemptState,
    Fork,
    GroupId,
    Mode,
    NewRollout,
    ReplayOf,
    RolloutState,
    StepId,
    StepKind,
    branch_id,
    branches_id,
)
from lightningrl.store.base import RolloutQuery, Store
from lightningrl.traces import AttemptRecord, read_attempts
from lightningrl_verl.training.metrics import Metrics

_EXAMPLES = 3


@dataclass(frozen=True)
class Forked:
    """What became of an iteration's branches."""

    skipped: Sequence[GroupId] = ()
    """Groups of branches one of which ended before its fork."""
    metrics: Metrics = field(default_factory=dict)


async def forks_of(
    store: Store, recipe: Recipe, iteration: int, groups: Sequence[GroupId]
) -> list[NewRollout]:
    """The branches of an iteration: those that the store has, else those that are to be enqueued.

    Args:
        store: holds the iteration's rollouts, all of which have ended.
        recipe: with `algorithm.forks`.
        iteration: of them.
        groups: those that may be forked: they will be taken.
    """
    query = RolloutQuery(run=recipe.name, mode=Mode.TRAIN, iteration=iteration)
    known = await store.rollouts(structs.replace(query, variant=BRANCH))
    if known:
        return [one.spec for one in known]
    states = (RolloutState.SUCCEEDED,)
    parents = await store.rollouts(structs.replace(query, variant="", states=states))
    records = await read_attempts(store, parents)
    by_group: dict[GroupId, list[AttemptRecord]] = {one: [] for one in groups}
    for attempts in records:
        of_group = by_group.get(attempts[-1].rollout.spec.group_id)
        if of_group is not None and attempts[-1].rollout.reward is not None:
            of_group += [one for one in attempts if one.attempt.state is AttemptState.SUCCEEDED]
    return [
        branch
        for group_id, members in by_group.items()
        for branch in _branches(recipe, group_id, members)
    ]


def _branches(
    recipe: Recipe, group_id: GroupId, members: Sequence[AttemptRecord]
) -> list[NewRollout]:
    """The branches of one group."""
    assert recipe.algorithm is not None
    forks = recipe.algorithm.forks
    assert forks is not None
    members = sorted(members, key=lambda one: one.rollout.spec.member)
    steps = [_forkable(recipe, one) for one in members]
    group = Group(group_id, tuple(_trace(one) for one in members))
    seed = f"{recipe.seed}/forks/{group_id}"
    points = choose(find_rule(forks.at), forks.at, group, steps, forks.per_group, seed)
    return [
        branch
        for member, place in points
        for branch in _at(members[member], steps[member][place].step_id, forks)
    ]


def _at(parent: AttemptRecord, step: StepId, forks: Forks) -> list[NewRollout]:
    spec, attempt = parent.rollout.spec, parent.attempt.id
    return [
        structs.replace(
            spec,
            id=branch_id(attempt, step, number),
            group_id=branches_id(spec.group_id, step),
            member=number,
            variant=BRANCH,
            fork=Fork(attempt, step),
        )
        for number in range(forks.members)
    ]


def _trace(one: AttemptRecord) -> Trace:
    reward = final_reward(one.events)
    assert reward is not None, "a rollout with a reward has an event of it"
    return Trace(one.rollout, one.attempt, one.transitions, reward.value)


def _forkable(recipe: Recipe, one: AttemptRecord) -> list[Transition]:
    """The model calls of an attempt that a policy may be trained on, and that have a trunk."""
    trained = {alias for alias, policy in recipe.policies.items() if policy.trainable}
    return [
        step
        for step in one.transitions
        if step.kind is StepKind.LLM
        and step.untrainable is None
        and step.call is not None
        and step.call.policy in trained
        and trunk_of(one.events, step.step_id)
    ]


async def judge_branches(store: Store, recipe: Recipe, branches: Sequence[NewRollout]) -> Forked:
    """Look at branches that have ended: which followed their trunks, and what they cost.

    Raises:
        RunError: every one of them diverged: the agent can't be replayed.
    """
    rollouts = await store.rollouts(RolloutQuery(ids=tuple(one.id for one in branches)))
    records = await read_attempts(store, rollouts)
    trunks = await _trunks(store, _forks_of_all(branches))
    skipped: set[GroupId] = set()
    told: list[str] = []
    whole = diverged = sampled = saved = 0
    for attempts in records:
        last: Replay | None = None
        for one in attempts:
            fork = one.rollout.spec.fork
            assert fork is not None
            last = replay_of(one.events, trunks[fork])
            sampled, saved = sampled + last.sampled, saved + last.saved
        if last is None or attempts[-1].rollout.state is not RolloutState.SUCCEEDED:
            failure = attempts[-1].attempt.failure if attempts else None
            if last is not None and last.diverged and failure is not None:
                diverged += 1
                told.append(f"{attempts[-1].rollout.id}: {failure.message}")
        elif last.whole:
            whole += 1
        else:
            diverged += 1
            skipped.add(attempts[-1].rollout.spec.group_id)
            told.append(f"{attempts[-1].rollout.id}: it ended before its parent asked at the fork")
    if branches and diverged == len(branches):
        raise RunError(_why_none_follows(recipe.name, told))
    metrics: Metrics = {
        "forks/asked": len(branches),
        "forks/replayed": whole,
        "forks/diverged": diverged,
        "forks/sampled_tokens": sampled,
        "forks/saved_tokens": saved,
    }
    return Forked(tuple(sorted(skipped)), metrics)


def _forks_of_all(branches: Sequence[NewRollout]) -> list[Fork]:
    """The forks of branches, each once."""
    return list(dict.fromkeys(one.fork for one in branches if one.fork is not None))


async def _trunks(store: Store, forks: Sequence[Fork]) -> Mapping[Fork, frozenset[ReplayOf]]:
    parents: list[AttemptId] = list(dict.fromkeys(one.attempt for one in forks))
    calls = {parent: await store.calls(parent) for parent in parents}
    found: dict[Fork, frozenset[ReplayOf]] = {}
    for fork in forks:
        assert fork.step is not None
        found[fork] = trunk_of(calls[fork.attempt], fork.step)
    return found


def _why_none_follows(run: str, told: Sequence[str]) -> str:
    lines = [f"  {one}" for one in told[:_EXAMPLES]]
    return "\n".join(
        [
            f"algorithm.forks: none of {len(told)} branches asked again what its parent had asked, so nothing can be"
            " compared. Where they went another way:",
            *lines,
            f"What an agent may not do: docs/how-to/fork-an-agent.md. Look at it alone with: lightningrl fork {run}"
            " --dry-run",
            "When it is mended, the same command tries these branches again.",
        ]
    )
