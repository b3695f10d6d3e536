"""How an agent is wired to the gateway, judged by what a few of its rollouts left.

Invariant: pure. What is said of a call is what the gateway recorded of it; nothing is inferred from the
agent's code.

A rollout counts as *joined* if one of its delivered calls has a step that an adapter opened. Where no
adapter spoke of models or agents at all, the gateway's record alone is the step, and a delivered call is
enough: such an agent trains too, without agent names and tools.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lightningrl.experience.trainable import TrainableCalls, count_calls
from lightningrl.recipe import Recipe
from lightningrl.schema import (
    FINAL,
    AttemptState,
    CallEvent,
    CallStatus,
    LogEvent,
    LogTopic,
    RewardEvent,
    RolloutState,
    StepKind,
    StepStartEvent,
)
from lightningrl.traces import AttemptRecord

_OF_ADAPTERS = (StepKind.LLM, StepKind.AGENT)
"""Kinds of steps that only an adapter opens; tools and retrievals may be opened by hand."""


@dataclass(frozen=True)
class Wiring:
    """What the rollouts show."""

    rollouts: int
    rewarded: int
    awaited: tuple[str, ...]
    """Rewards that rollouts which succeeded still await, each name once."""
    joined: int
    """Rollouts with a joined call."""
    redirected: dict[tuple[str, str], int]
    """(model asked for, policy that answered) -> delivered calls."""
    untouched: tuple[str, ...]
    """What went past the gateway, as the capture named it; each once."""
    trainable: int
    """Model calls that may be trained."""
    untrainable: dict[str, int]
    """Reason -> model calls that may not."""
    problems: tuple[str, ...]
    """Why this agent can't be trained as it is. Empty: it can."""


def judge_wiring(recipe: Recipe, rollouts: Sequence[Sequence[AttemptRecord]]) -> Wiring:
    """Judge the attempts of each rollout, oldest first."""
    decisive = [records[-1] for records in rollouts if records]
    rewarded = [
        one
        for one in decisive
        if one.rollout.state is RolloutState.SUCCEEDED and one.rollout.reward is not None
    ]
    joined = [one for one in decisive if _is_joined(one)]
    calls = list(_delivered([one for records in rollouts for one in records]))
    counted = count_calls(one for record in decisive for one in record.transitions)
    return Wiring(
        rollouts=len(rollouts),
        rewarded=len(rewarded),
        awaited=_awaited(decisive),
        joined=len(joined),
        redirected=dict(Counter((call.model, call.policy) for call in calls)),
        untouched=_untouched(rollouts),
        trainable=counted.trainable,
        untrainable={**counted.lost, **counted.left_out},
        problems=(
            *_unrewarded(len(rollouts) - len(rewarded) - sum(map(_comes_late, decisive)), decisive),
            *_unjoined(decisive),
            *_undeclared(recipe, {call.model for call in calls}),
            *_untrainable(recipe, counted),
        ),
    )


def _delivered(records: Sequence[AttemptRecord]) -> Iterator[CallEvent]:
    for record in records:
        for event in record.events:
            if isinstance(event, CallEvent) and event.status is CallStatus.DELIVERED:
                yield event


def _is_joined(record: AttemptRecord) -> bool:
    called = {call.step_id for call in _delivered([record])}
    opened = {
        event.step_id
        for event in record.events
        if isinstance(event, StepStartEvent) and event.kind in _OF_ADAPTERS
    }
    return bool(called & opened if opened else called)


def _untouched(rollouts: Sequence[Sequence[AttemptRecord]]) -> tuple[str, ...]:
    named = (
        event.message
        for records in rollouts
        for record in records
        for event in record.events
        if isinstance(event, LogEvent) and event.topic is LogTopic.OUTSIDE
    )
    return tuple(dict.fromkeys(named))


def _awaited(decisive: Sequence[AttemptRecord]) -> tuple[str, ...]:
    names: dict[str, None] = {}
    for one in decisive:
        if one.rollout.state is RolloutState.SUCCEEDED and not one.rollout.complete:
            given = {event.name for event in one.events if isinstance(event, RewardEvent)}
            names |= dict.fromkeys(n for n in one.rollout.spec.await_rewards if n not in given)
    return tuple(names)


def _comes_late(record: AttemptRecord) -> bool:
    """Whether the final reward is not there, and is awaited."""
    return (
        record.rollout.state is RolloutState.SUCCEEDED
        and record.rollout.reward is None
        and FINAL in record.rollout.spec.await_rewards
    )


def _unrewarded(missing: int, decisive: Sequence[AttemptRecord]) -> Iterator[str]:
    if not missing:
        return
    why = ""
    for one in decisive:
        failure = one.attempt.failure
        if one.attempt.state is not AttemptState.SUCCEEDED and failure is not None:
            why = f": {failure.message.strip().splitlines()[0]}" if failure.message else ""
            break
    yield f"{missing} of {len(decisive)} rollouts have no reward{why}"


def _unjoined(decisive: Sequence[AttemptRecord]) -> Iterator[str]:
    """Of rollouts that ended well; in one that failed early, a missing call means nothing."""
    well = [one for one in decisive if one.attempt.state is AttemptState.SUCCEEDED]
    without = [one for one in well if not _is_joined(one)]
    if without and not any(True for _ in _delivered(without)):
        yield (
            f"in {len(without)} rollouts no model call was answered: the agent's client must use"
            " OPENAI_BASE_URL, or ask for a model that a policy names or `replaces`"
        )
    elif without:
        yield (
            f"in {len(without)} rollouts an adapter saw steps and the gateway saw calls, and none"
            " belong together: a client was built that the adapter does not know"
        )


def _untrainable(recipe: Recipe, counted: TrainableCalls) -> Iterator[str]:
    """Too few of the calls could be trained."""
    share, least = counted.share, recipe.guards.min_trainable_share
    if share is not None and share < least:
        yield (
            f"only {share:.0%} of the model calls could be trained (guards.min_trainable_share:"
            f" {least:g}); the reasons stand above"
        )


def _undeclared(recipe: Recipe, models: set[str]) -> Iterator[str]:
    """Several models, and nothing says which of them is trained."""
    declared = any(one.replaces or one.agents for one in recipe.policies.values())
    models = models - recipe.policies.keys()
    if len(models) > 1 and not declared:
        yield (
            f"the agent asks for {len(models)} models ({', '.join(sorted(models))}) and no policy"
            " says which of them it answers for: list them under `replaces`, or agents under `agents`"
        )
