"""Which steps of a group's rollouts are forked: the rules that `algorithm.forks.at` names.

Invariant: pure, with all chance from the generator that comes in. So a start after a crash chooses what the one before
it chose.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any, cast

from lightningrl.errors import ConfigError, RunError
from lightningrl.experience.transition import Group, Transition
from lightningrl.user_input.references import load_object

Steps = Sequence[Sequence[Transition]]
"""[member][place] the model calls that may be forked, in order of their start."""

Points = list[tuple[int, int]]
"""Member and place of each step that is forked."""

ForkRule = Callable[[Group, Steps, int, Random], Points]
"""`(group, steps, count, random) -> points`: at most `count` of `steps`, each once. Members are those of `group.traces`;
fewer points, or none, are fine."""


def find_rule(at: str, *, folder: Path | None = None) -> ForkRule:
    """The rule that a recipe names.

    Args:
        at: one of `FORK_RULES`, or `module:function`.
        folder: the recipe's, where its own modules are.

    Raises:
        ConfigError: there is no such function, or it is none.
    """
    if at in _RULES:
        return _RULES[at]
    found: Any = load_object(at, what="algorithm.forks.at", folder=folder)
    if not callable(found):
        raise ConfigError(
            f"algorithm.forks.at: {at!r} is {type(found).__name__}; name a function"
            " (group, steps, count, random) -> [(member, place)]"
        )
    return cast("ForkRule", found)


def choose(rule: ForkRule, at: str, group: Group, steps: Steps, count: int, seed: str) -> Points:
    """Ask a rule, and check what it says.

    Raises:
        RunError: it names a step that isn't there, or one twice, or too many.
    """
    points = [
        (int(member), int(place)) for member, place in rule(group, steps, count, Random(seed))
    ]
    there = {(m, place) for m, of_member in enumerate(steps) for place in range(len(of_member))}
    wrong = [one for one in points if one not in there]
    if wrong or len(set(points)) < len(points) or len(points) > count:
        what = f"{wrong[0]} is none of the steps" if wrong else f"{len(points)} points"
        raise RunError(
            f"algorithm.forks.at: {at!r} answered {points} for group {group.group_id!r}: {what}. It must give at most"
            f" {count} different pairs (member, place) of its argument 'steps'"
        )
    return points


def spread(group: Group, steps: Steps, count: int, random: Random) -> Points:
    """Fork point j lies in part j of `count` equal parts of its rollout, anywhere in it; each in another rollout.

    Where there are fewer rollouts than points they are gone through again.
    """
    del group
    members = _shuffled(steps, random)
    chosen: Points = []
    for j in range(count if members else 0):
        member = members[j % len(members)]
        length = len(steps[member])
        low = j * length // count
        place = random.randrange(low, max((j + 1) * length // count, low + 1))
        if (member, place) not in chosen:
            chosen.append((member, place))
    return chosen


def first(group: Group, steps: Steps, count: int, random: Random) -> Points:
    """The first step that may be forked, each of another rollout; then the second ones."""
    del group
    members = _shuffled(steps, random)
    longest = max((len(steps[member]) for member in members), default=0)
    every = [
        (member, place)
        for place in range(longest)
        for member in members
        if place < len(steps[member])
    ]
    return every[:count]


def at_random(group: Group, steps: Steps, count: int, random: Random) -> Points:
    """Any steps, all with the same chance."""
    del group
    every = _every(steps)
    return random.sample(every, min(count, len(every)))


def by_entropy(group: Group, steps: Steps, count: int, random: Random) -> Points:
    """The steps whose answers the policy was least certain of: mean of minus the log-prob of their sampled tokens.

    That is an estimate of the entropy. Of equal ones the earlier.
    """
    del group, random
    return sorted(_every(steps), key=lambda one: -_surprise(steps[one[0]][one[1]]))[:count]


_RULES: dict[str, ForkRule] = {
    "spread": spread,
    "first": first,
    "random": at_random,
    "entropy": by_entropy,
}


def _shuffled(steps: Steps, random: Random) -> list[int]:
    """The members that have a step which may be forked."""
    members = [m for m, of_member in enumerate(steps) if of_member]
    random.shuffle(members)
    return members


def _every(steps: Steps) -> Points:
    return [(m, place) for m, of_member in enumerate(steps) for place in range(len(of_member))]


def _surprise(step: Transition) -> float:
    logprobs = step.logprobs
    return -float(logprobs.mean()) if len(logprobs) else 0.0
