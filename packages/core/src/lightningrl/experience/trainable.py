"""How many of the model calls may be trained, and why the others may not.

Invariant: every answered call is counted once. Calls that the recipe itself leaves out (agents that a policy doesn't
train, a harness's side calls, those that a function of the user's says no to, policies that are frozen), and those that are trained in another rollout, are no loss, and stand apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lightningrl.experience.trained_calls import (
    NOT_NOW,
    SIDE_CALL,
    UNTRAINED_AGENT,
    UNTRAINED_POLICY,
)
from lightningrl.experience.transition import Transition
from lightningrl.schema import REPLAYED, reason_class

EMPTY = "the engine gave no token ids"
"""Why a call without sampled tokens is not trained, where the gateway named no other reason."""

_MEANT = frozenset({NOT_NOW, SIDE_CALL, UNTRAINED_AGENT, UNTRAINED_POLICY, reason_class(REPLAYED)})


@dataclass(frozen=True)
class TrainableCalls:
    """Model calls of some rollouts, by what becomes of them."""

    trainable: int
    lost: Mapping[str, int]
    """Reason -> calls that the recipe would train and that can't be."""
    left_out: Mapping[str, int]
    """Reason -> calls that the recipe leaves out."""

    @property
    def share(self) -> float | None:
        """Of the calls that the recipe would train the share that can be. `None`: there is none."""
        meant = self.trainable + sum(self.lost.values())
        return self.trainable / meant if meant else None

    @property
    def reasons(self) -> str:
        """For an error: each reason with its calls, the most frequent first."""
        every = Counter(self.lost) + Counter(self.left_out)
        counted = [f"{calls} x {reason}" for reason, calls in every.most_common()]
        return "; ".join(counted) or "no model call was answered"


def count_calls(transitions: Iterable[Transition]) -> TrainableCalls:
    """Count the model calls among transitions, as a policy looks at them (`as_trained`) or as they are."""
    trainable = 0
    reasons: Counter[str] = Counter()
    for one in transitions:
        if one.call is None:
            continue
        reason = one.untrainable or (None if one.token_bytes else EMPTY)
        if reason is None:
            trainable += 1
        else:
            reasons[reason_class(reason)] += 1
    return TrainableCalls(
        trainable,
        lost={reason: calls for reason, calls in reasons.items() if reason not in _MEANT},
        left_out={reason: calls for reason, calls in reasons.items() if reason in _MEANT},
    )
