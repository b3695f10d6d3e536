"""What can be wrong with a run, as one list of checks that `try`, `train` and `doctor` judge by.

Invariants:
- Pure: a check looks at an `Evidence` alone, and says of a call what the gateway recorded of it; nothing is
  inferred from the agent's code.
- Whoever examines a run uses this list: a kind has one check, one wording and one remedy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from lightningrl.checks import calls, conversations, operations, rewards
from lightningrl.checks.calls import few_trainable, undeclared_models
from lightningrl.checks.evidence import (
    MOST_COUNTED,
    Engine,
    Evidence,
    Finding,
    Level,
    Operations,
    Place,
)

__all__ = [
    "CHECKS",
    "MOST_COUNTED",
    "SYMPTOMS",
    "Check",
    "Engine",
    "Evidence",
    "Finding",
    "Level",
    "Operations",
    "Place",
    "examine",
    "few_trainable",
    "undeclared_models",
]

_EVERYWHERE = frozenset(Place)
_TRAINING = frozenset({Place.TRAIN, Place.DOCTOR})
_TRY = frozenset({Place.TRY})
_DOCTOR = frozenset({Place.DOCTOR})


@dataclass(frozen=True)
class Check:
    """One kind of thing that can be wrong."""

    kind: str
    """Of its findings; several checks may share one, each in its own place."""
    look: Callable[[Evidence], Iterator[Finding]]
    places: frozenset[Place] = _EVERYWHERE
    """Who asks it."""


CHECKS = (
    Check("no runner", operations.no_runner, _DOCTOR),
    Check("expired lease", operations.expired_lease, _DOCTOR),
    Check("engine down", operations.engine_down, _DOCTOR),
    Check("gateway held", operations.gateway_held, _DOCTOR),
    Check("no model call", calls.no_model_call),
    Check("refused requests", calls.refused_requests),
    Check("unknown fields", calls.unknown_fields),
    Check("other host", calls.other_hosts),
    Check("unanswered steps", calls.unanswered_steps),
    Check("unjoined calls", calls.unjoined_calls),
    Check("several models", calls.several_models),
    Check("untrainable calls", calls.untrainable_calls),
    Check("tool parser off", calls.tool_parser_off),
    Check("broken conversations", conversations.broken_conversations),
    Check("carried-over state", conversations.carried_over),
    Check("same prompt", conversations.same_prompt),
    Check("all rewards equal", rewards.all_rewards_equal, _TRAINING),
    Check("all rewards equal", rewards.one_reward, _TRY),
    Check("reward errors", rewards.swallowed_errors),
    Check("unknown steps", rewards.unknown_steps),
    Check("missing reward", rewards.missing_reward),
    Check("rollouts fail", rewards.some_fail, _TRY),
    Check("rollouts fail", rewards.most_fail, _TRAINING),
)

SYMPTOMS: Mapping[str, str] = {
    "no runner": "The run stands still, and rollouts stay queued",
    "expired lease": "Attempts run and never end",
    "engine down": "Model calls are retried until they time out",
    "gateway held": "Model calls wait, or are refused with 503",
    "no model call": "The agent answers, and no model call is recorded",
    "refused requests": "The agent gets an error of status 401 or 404, and goes on",
    "unknown fields": "A field of the request changes nothing",
    "other host": "Calls of one model are missing",
    "unanswered steps": "Steps have no tokens",
    "unjoined calls": "Calls have no agent's name",
    "several models": "`try` does not pass, and the agent asks for several models",
    "untrainable calls": "Calls are recorded, and few or none are trained",
    "tool parser off": "Tools are never run, and tool calls stand in the model's text",
    "broken conversations": "One conversation becomes many rows, and updates are slow",
    "carried-over state": "A rollout knows what an earlier one was told",
    "same prompt": "The model answers every task alike",
    "all rewards equal": "The curve is flat, or iterations make no update",
    "reward errors": "The reward is 0 although the answer looks right",
    "unknown steps": "Step rewards change nothing",
    "missing reward": "Rollouts succeed, and are not trained on",
    "rollouts fail": "Rollouts fail",
}
"""Kind -> what a person sees before a check names it."""


def examine(found: Evidence, place: Place, checks: Sequence[Check] = CHECKS) -> list[Finding]:
    """What is wrong, problems before warnings; nothing gives an empty list."""
    findings = [one for check in checks if place in check.places for one in check.look(found)]
    return sorted(findings, key=lambda one: one.level is not Level.PROBLEM)
