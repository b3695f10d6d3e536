"""Rewards that the agent itself gives, while it runs.

Invariant: outside a rollout every function here does nothing, so that the same file runs in
production; inside one, a value that is no finite number is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from lightningrl.capture.context import RolloutContext, Step, current, current_step
from lightningrl.conversation.responses import step_of_response
from lightningrl.errors import AgentError
from lightningrl.schema import FINAL, EventId, RewardEvent, StepId, new_id

STEP_REWARD = "reward"
"""The name of a step's reward unless another is given."""


class NotFinite(ValueError):
    """A reward that is NaN or infinite."""


@dataclass(frozen=True)
class Reward:
    """What an agent or a reward function may return instead of a number."""

    final: float
    """The rollout's reward."""
    steps: Mapping[str, float] = field(default_factory=dict[str, float])
    """Step id, or id of a model response -> reward."""
    parts: Mapping[str, float] = field(default_factory=dict[str, float])
    """What stands beside the final reward, such as `{"format": 1.0, "accuracy": 0.0}`: name -> number. Their means are
    reported; nothing is trained on them. A part that this rollout says nothing of is left out, and so is the
    rollout from that part's mean."""


def reward(value: float, step: Step | str | None = None, name: str = STEP_REWARD) -> None:
    """Reward one step.

    Args:
        value: a finite number.
        step: a step, a step id, or the id of a model response. `None`: the current step; inside a
            tool that is the tool's.
        name: rewards of different names add up; of the same name the latest counts.

    Raises:
        ValueError: `value` is NaN or infinite.
        AgentError: `step` is `None` and there is no current step.
    """
    context = current()
    if context is None:
        return
    if step is None:
        step = current_step()
        if step is None:
            raise AgentError(
                f"reward({value!r}) in rollout {context.rollout_id!r}: no step is current here; "
                "give step=... or reward the whole rollout with final_reward()"
            )
    step_id = step.id if isinstance(step, Step) else StepId(step_of_response(step))
    emit_reward(context, value, step_id=step_id, name=name, source="agent")


def final_reward(value: float) -> None:
    """Reward the rollout as a whole; once, and only if nothing else rewards it.

    Raises:
        ValueError: `value` is NaN or infinite.
    """
    context = current()
    if context is not None:
        emit_reward(context, value, step_id=None, name=FINAL, source="agent")


def emit_rewards(context: RolloutContext, given: Reward, *, source: str) -> None:
    """Give `context` a final reward, its parts and those of its steps.

    Raises:
        ValueError: a value is NaN or infinite.
    """
    for step_id, value in given.steps.items():
        emit_reward(
            context,
            value,
            step_id=StepId(step_of_response(step_id)),
            name=STEP_REWARD,
            source=source,
        )
    for name, value in given.parts.items():
        emit_reward(context, value, step_id=None, name=name, source=source)
    emit_reward(context, given.final, step_id=None, name=FINAL, source=source)


def emit_reward(
    context: RolloutContext, value: float, *, step_id: StepId | None, name: str, source: str
) -> None:
    """Give `context` one reward.

    Raises:
        ValueError: `value` is NaN or infinite.
    """
    finite(value, f"the reward {name!r} of rollout {context.rollout_id!r}")
    with context.lock:
        revision = context.revisions.get((step_id, name), 0)
        context.revisions[step_id, name] = revision + 1
    context.emit(
        RewardEvent(
            id=EventId(new_id("e")),
            attempt_id=context.attempt_id,
            at=datetime.now(UTC),
            value=float(value),
            step_id=step_id,
            name=name,
            source=source,
            revision=revision,
        )
    )


def finite(value: float, what: str) -> float:
    """Return `value` as a float.

    Raises:
        NotFinite: it is NaN, infinite or beyond what a float holds; the text names `what`.
    """
    try:
        number = float(value)
    except OverflowError:
        number = math.inf if value > 0 else -math.inf
    if not math.isfinite(number):
        raise NotFinite(f"{what} is {number}; a reward must be a finite number")
    return number
