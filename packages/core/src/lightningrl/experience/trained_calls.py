"""Which calls train which policy.

Invariant: a call trains the policy that answered it and no other; none where that policy is frozen, doesn't
train the agent, takes it for a side call, is told not to by a function of the user's, or sampled it with weights that
are too old. What is left out has the reason; that the recipe leaves it out comes before what else is against it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import msgspec

from lightningrl.experience.side_calls import is_side_call
from lightningrl.experience.train_when import TrainWhen, load_train_when
from lightningrl.experience.transition import Group, Transition
from lightningrl.recipe import PolicyRecipe, SideCall
from lightningrl.schema import is_among

UNTRAINED_AGENT = "the policy does not train this agent"
"""Why a call of an agent that `policies.NAME.train_agents` leaves out is not trained."""

SIDE_CALL = "a side call of the harness (policies.NAME.side_calls)"
"""Why a call that a harness makes beside the task is not trained."""

NOT_NOW = "a function leaves it out (policies.NAME.train_when)"
"""Why a call is not trained of whose request the user's function says so."""

UNTRAINED_POLICY = "no policy that is trained answered it"
"""Why a call of a frozen policy, or of none of the recipe's, is not trained."""

STALE = "sampled by weights older than algorithm.max_staleness"
"""Why a call of an early policy version is not trained."""


@dataclass(frozen=True)
class Lens:
    """How transitions look to one policy that is trained."""

    alias: str
    agents: frozenset[str]
    """Those that it trains; empty for all."""
    oldest: int
    """Version whose calls are still trained."""
    side_calls: tuple[SideCall, ...] = ()
    """Which calls are beside the task."""
    train_when: TrainWhen | None = None
    """Which calls are trained. `None`: nothing is asked."""

    def look(self, one: Transition) -> Transition:
        """The transition; without tokens if another policy answered, untrainable if it is left out."""
        if one.call is None:
            return one
        if one.call.policy != self.alias:
            return msgspec.structs.replace(one, prompt_bytes=b"", token_bytes=b"")
        if self.agents and not is_among(self.agents, one.agent, one.within):
            return msgspec.structs.replace(one, untrainable=UNTRAINED_AGENT)
        if is_side_call(one.call, self.side_calls):
            return msgspec.structs.replace(one, untrainable=SIDE_CALL)
        if self.train_when is not None and not self.train_when.trains(one.call):
            return msgspec.structs.replace(one, untrainable=NOT_NOW)
        if one.untrainable is None and one.call.version_start < self.oldest:
            return msgspec.structs.replace(one, untrainable=STALE)
        return one


def lenses(
    policies: Mapping[str, PolicyRecipe],
    *,
    versions: Mapping[str, int] = MappingProxyType({}),
    max_staleness: int = 0,
    code: bool = True,
) -> dict[str, Lens]:
    """Of each trainable policy, by alias.

    Args:
        policies: the recipe's.
        versions: alias -> version that is trained; calls of a policy without one are never stale.
        max_staleness: versions that a call may be older.
        code: whether functions that the recipe names are run, whose folder is on the import path. False: calls
            look as if they left none out.

    Raises:
        ConfigError: a function can't be found.
    """
    functions = load_train_when(policies) if code else {}
    return {
        alias: Lens(
            alias,
            frozenset(policy.train_agents),
            versions[alias] - max_staleness if alias in versions else 0,
            policy.side_calls,
            functions.get(alias),
        )
        for alias, policy in policies.items()
        if policy.trainable
    }


def as_trained(groups: Sequence[Group], lenses: Mapping[str, Lens]) -> list[Group]:
    """The groups with every call that trains no policy marked untrainable, as credit assigners are given them."""
    return [
        replace(
            group,
            traces=tuple(
                replace(trace, transitions=tuple(as_seen(one, lenses) for one in trace.transitions))
                for trace in group.traces
            ),
        )
        for group in groups
    ]


def as_seen(one: Transition, lenses: Mapping[str, Lens]) -> Transition:
    """The transition as the policy looks at it that answered it; untrainable where none of `lenses` did."""
    if one.call is None:
        return one
    lens = lenses.get(one.call.policy)
    if lens is not None:
        return lens.look(one)
    return msgspec.structs.replace(one, untrainable=UNTRAINED_POLICY)


def as_meant(
    transitions: Iterable[Transition], policies: Mapping[str, PolicyRecipe], *, code: bool
) -> Iterator[Transition]:
    """Transitions as the recipe's policies look at them; those of a policy that it doesn't have as they are."""
    seen_by = lenses(policies, code=code)
    for one in transitions:
        known = one.call is not None and one.call.policy in policies
        yield as_seen(one, seen_by) if known else one
