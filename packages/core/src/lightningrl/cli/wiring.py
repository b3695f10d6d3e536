"""What a few rollouts show of how their agent is wired to the gateway, counted.

Invariant: pure. What is said of a call is what the gateway recorded of it. Whether anything is wrong with it
is for `lightningrl.checks` to say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lightningrl.checks.calls import is_joined
from lightningrl.checks.evidence import delivered
from lightningrl.experience.formats import Formats, count_formats
from lightningrl.experience.trainable import count_calls
from lightningrl.experience.trained_calls import as_meant
from lightningrl.recipe import PolicyRecipe
from lightningrl.schema import RewardEvent, RolloutState
from lightningrl.traces import AttemptRecord


@dataclass(frozen=True)
class Wiring:
    """What the rollouts show."""

    rollouts: int
    rewarded: int
    awaited: tuple[str, ...]
    """Rewards that rollouts which succeeded still await, each name once."""
    joined: int
    """Rollouts one of whose calls joined a step that an adapter opened (`is_joined`)."""
    redirected: dict[tuple[str, str], int]
    """(model asked for, policy that answered) -> delivered calls."""
    trainable: int
    """Model calls that may be trained."""
    untrainable: dict[str, int]
    """Reason -> model calls that may not."""
    formats: Formats
    """Model calls of which a form was asked in words (`policies.NAME.constrained: free`)."""


def count_wiring(
    rollouts: Sequence[Sequence[AttemptRecord]], policies: Mapping[str, PolicyRecipe]
) -> Wiring:
    """Count what the attempts of each rollout, oldest first, left; calls as the recipe's policies look at them."""
    decisive = [records[-1] for records in rollouts if records]
    rewarded = [
        one
        for one in decisive
        if one.rollout.state is RolloutState.SUCCEEDED and one.rollout.reward is not None
    ]
    calls = [call for records in rollouts for one in records for call in delivered(one)]
    transitions = [one for record in decisive for one in record.transitions]
    counted = count_calls(as_meant(transitions, policies, code=True))
    return Wiring(
        rollouts=len(rollouts),
        rewarded=len(rewarded),
        awaited=_awaited(decisive),
        joined=sum(map(is_joined, decisive)),
        redirected=dict(Counter((call.model, call.policy) for call in calls)),
        trainable=counted.trainable,
        untrainable={**counted.lost, **counted.left_out},
        formats=count_formats(transitions),
    )


def _awaited(decisive: Sequence[AttemptRecord]) -> tuple[str, ...]:
    names: dict[str, None] = {}
    for one in decisive:
        if one.rollout.state is RolloutState.SUCCEEDED and not one.rollout.complete:
            given = {event.name for event in one.events if isinstance(event, RewardEvent)}
            names |= dict.fromkeys(n for n in one.rollout.spec.await_rewards if n not in given)
    return tuple(names)
