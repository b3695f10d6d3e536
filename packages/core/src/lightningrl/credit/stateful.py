"""Credit assigners with a critic or a state of their own.

Invariant: the assigner itself remembers nothing. State and values come in, state and targets go out, so
that a checkpoint which holds the state makes a resumed run give the credit that an undisturbed one gives.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from lightningrl.credit.columns import is_decision
from lightningrl.credit.result import Credit
from lightningrl.experience.transition import Group, Trace

Values = list[list[list[float]]]
"""`values[g][i][t]`: what the critic expects of `groups[g].traces[i].transitions[t]`, read at the last
token of its prompt, before its first sampled one. Aligned like credit. NaN where there is no value: a
transition that is no model call, or one of a policy or agent that is not trained."""

State = dict[str, Any]
"""JSON-like, written into the iteration's checkpoint."""


def cut_off(trace: Trace) -> int | None:
    """Index of the trace's last model call if its answer ended at a token limit; else `None`."""
    last = max((t for t, one in enumerate(trace.transitions) if is_decision(one)), default=None)
    if last is None:
        return None
    choice = trace.transitions[last].choice
    return last if choice is not None and choice.finish_reason == "length" else None


@dataclass(frozen=True)
class Outcome:
    """What one call of an assigner gives."""

    credit: Credit
    state: State
    """For the next iteration. An iteration that is made up after a crash gets the old one again."""
    targets: Values | None = None
    """What the values should have been, aligned like them; 0 where there is none. `None`: the method
    has no critic."""


class StatefulAssigner(ABC):
    """A method that needs values from a critic, or remembers something between iterations.

    A recipe names the class as it names a function; it is made with the recipe's `credit_args` as keyword
    arguments.
    """

    needs_values: ClassVar[bool] = False
    """Whether the trainer must run a critic, and train it on `Outcome.targets`."""

    @property
    def needs_ends(self) -> bool:
        """Whether the critic must also say what it expects behind answers that were cut off."""
        return False

    def initial_state(self) -> State:
        """The state before the first iteration."""
        return {}

    @abstractmethod
    def assign(
        self,
        groups: Sequence[Group],
        *,
        state: State,
        values: Values | None,
        ends: Values | None = None,
    ) -> Outcome:
        """Credit for `groups`, and the state that follows `state`, which is left as it is.

        Args:
            groups: of one iteration.
            state: of the iteration before; `initial_state` in the first.
            values: from the critic. `None` unless `needs_values`.
            ends: from the critic, aligned like the values: of a member whose last answer was `cut_off`, what
                is expected behind that answer; 0 everywhere else. `None` unless `needs_ends`.
        """
