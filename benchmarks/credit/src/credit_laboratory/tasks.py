"""Controlled tasks, each with a known right credit, stepped for many rollouts at once.

Invariant: all chance comes in as arguments, so that a seed's rollouts don't depend on other seeds.

Every task has `CONTEXTS` instances (the laboratory's "tasks" of a training set). Observations are whole numbers
below `observations`, different in every context.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

CONTEXTS = 4
FLIP = 0.1
"""Share of the outcomes of `Needle` and `TwoAgents` that are turned round."""


class Environment(ABC):
    """B rollouts of one task, all at the same turn."""

    name: ClassVar[str]
    turns: ClassVar[int]
    """Longest rollout."""
    actions: ClassVar[int]
    observations: ClassVar[int]
    rewards_steps: ClassVar[bool] = False
    """Whether the user gives step rewards; else the reward is final."""
    unique_states: ClassVar[bool] = False
    """Whether no state key ever repeats, as with a timestamp in the prompt."""

    def __init__(self, contexts: Ints) -> None:
        self.context = contexts

    @abstractmethod
    def observe(self, turn: int) -> Ints:
        """[B] what the policy sees, and what state keys are made of."""

    @abstractmethod
    def act(self, turn: int, actions: Ints, chance: Floats) -> tuple[Floats, Flags]:
        """[B] rewards, and whether the rollout ended with this turn.

        Args:
            turn: 0 is the first.
            actions: [B].
            chance: [B] uniform in [0, 1).
        """

    @abstractmethod
    def succeeded(self) -> Flags:
        """[B] whether the task was done, noise aside."""

    def role(self, turn: int) -> int:
        """Which agent takes the turn."""
        del turn
        return 0


class Needle(Environment):
    """One decision of forty matters, at a turn that the context sets; afterwards its outcome is visible."""

    name = "needle"
    turns = 40
    actions = 6
    observations = CONTEXTS * 40 * 3
    visible = True
    _decisive = np.array([3, 13, 23, 33])

    def __init__(self, contexts: Ints) -> None:
        super().__init__(contexts)
        self._flag = np.zeros_like(contexts)

    def observe(self, turn: int) -> Ints:
        """Context, turn, and whether the decision is open, was wrong or was right."""
        flag = self._flag if self.visible else 0
        return (self.context * self.turns + turn) * 3 + flag

    def act(self, turn: int, actions: Ints, chance: Floats) -> tuple[Floats, Flags]:
        """Reward 1 at the end for the right decision, turned round for a tenth."""
        right = actions == (self.context * 5 + 2) % self.actions
        decisive = turn == self._decisive[self.context]
        self._flag = np.where(decisive, np.where(right, 2, 1), self._flag)
        return _at_the_end(turn == self.turns - 1, self.succeeded(), chance)

    def succeeded(self) -> Flags:
        """Whether the decision was right."""
        return self._flag == 2


class HiddenNeedle(Needle):
    """The same with its outcome hidden: states after the decision look alike whether it was right or not."""

    name = "hidden_needle"
    visible = False


class TwoAgents(Environment):
    """A planner decides at two turns, a solver that can do nothing wrong takes the others."""

    name = "two_agents"
    turns = 24
    actions = 4
    observations = CONTEXTS * 24 * 2
    _planned = (0, 12)

    def __init__(self, contexts: Ints) -> None:
        super().__init__(contexts)
        self._sound = np.ones(len(contexts), np.bool_)

    def observe(self, turn: int) -> Ints:
        """Context, turn, and whether the plan is sound so far."""
        return (self.context * self.turns + turn) * 2 + self._sound

    def act(self, turn: int, actions: Ints, chance: Floats) -> tuple[Floats, Flags]:
        """Reward 1 at the end for a sound plan, turned round for a tenth."""
        if turn in self._planned:
            self._sound = self._sound & (actions == (self.context * 3 + turn) % self.actions)
        return _at_the_end(turn == self.turns - 1, self._sound, chance)

    def succeeded(self) -> Flags:
        """Whether both plans were right."""
        return self._sound

    def role(self, turn: int) -> int:
        """0 the planner, 1 the solver."""
        return 0 if turn in self._planned else 1


class Grid(Environment):
    """A walk on 8 by 8 fields to a goal that the context sets: states repeat within and between rollouts."""

    name = "grid"
    turns = 40
    actions = 4
    observations = CONTEXTS * 64
    _goals = np.array([[7, 7], [7, 2], [1, 7], [5, 4]])
    _moves = np.array([[1, 0], [-1, 0], [0, 1], [0, -1]])

    def __init__(self, contexts: Ints) -> None:
        super().__init__(contexts)
        self._place = np.zeros((len(contexts), 2), np.int64)
        self._arrived = np.zeros(len(contexts), np.bool_)

    def observe(self, turn: int) -> Ints:
        """Context and field."""
        del turn
        return self.context * 64 + self._place[:, 0] * 8 + self._place[:, 1]

    def act(self, turn: int, actions: Ints, chance: Floats) -> tuple[Floats, Flags]:
        """Reward 1 for arriving, which ends the rollout."""
        del chance
        moved = np.clip(self._place + self._moves[actions], 0, 7)
        self._place = np.where(self._arrived[:, None], self._place, moved)
        hit = (self._place == self._goals[self.context]).all(1) & ~self._arrived
        self._arrived = self._arrived | hit
        return hit.astype(np.float64), self._arrived | (turn == self.turns - 1)

    def succeeded(self) -> Flags:
        """Whether the goal was reached."""
        return self._arrived


class UnmatchedGrid(Grid):
    """The same walk where no state key repeats."""

    name = "unmatched_grid"
    unique_states = True


class Steps(Environment):
    """Thirty-two decisions, each right or wrong for itself, each with a reward of its own."""

    name = "steps"
    turns = 32
    actions = 5
    observations = CONTEXTS * 32
    rewards_steps = True

    def __init__(self, contexts: Ints) -> None:
        super().__init__(contexts)
        self._right = np.zeros(len(contexts), np.int64)

    def observe(self, turn: int) -> Ints:
        """Context and turn."""
        return self.context * self.turns + turn

    def act(self, turn: int, actions: Ints, chance: Floats) -> tuple[Floats, Flags]:
        """Reward 1 for each right decision."""
        del chance
        right = actions == (self.context * 3 + turn * 2 + turn // 3) % self.actions
        self._right = self._right + right
        return right.astype(np.float64), np.full(len(actions), turn == self.turns - 1)

    def succeeded(self) -> Flags:
        """Whether at least 28 were right."""
        return self._right >= self.turns - self.turns // 8


class Control(Environment):
    """A single decision: there is nothing to assign, so no method may be worse than broadcast."""

    name = "control"
    turns = 1
    actions = 8
    observations = CONTEXTS

    def __init__(self, contexts: Ints) -> None:
        super().__init__(contexts)
        self._hit = np.zeros(len(contexts), np.bool_)

    def observe(self, turn: int) -> Ints:
        """Context."""
        del turn
        return self.context

    def act(self, turn: int, actions: Ints, chance: Floats) -> tuple[Floats, Flags]:
        """Reward 1 with probability 0.95 for the right action, 0.1 for another one."""
        del turn
        right = actions == (self.context * 3 + 1) % self.actions
        self._hit = chance < np.where(right, 0.95, 0.1)
        return self._hit.astype(np.float64), np.ones(len(actions), np.bool_)

    def succeeded(self) -> Flags:
        """Whether it was paid."""
        return self._hit


ENVIRONMENTS: dict[str, type[Environment]] = {
    one.name: one for one in (Needle, HiddenNeedle, TwoAgents, Grid, UnmatchedGrid, Steps, Control)
}


def _at_the_end(end: bool, success: Flags, chance: Floats) -> tuple[Floats, Flags]:
    paid = (success ^ (chance < FLIP)) if end else np.zeros_like(success)
    return paid.astype(np.float64), np.full(len(success), end)
