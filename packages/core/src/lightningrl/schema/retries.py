"""Why attempts fail, and which failures lead to another attempt."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class FailureKind(StrEnum):
    """Why an attempt did not succeed; decides whether the rollout is tried again."""

    AGENT = "agent"
    """The agent raised, or broke its contract (two rewards, NaN, no model call)."""
    NO_REWARD = "no_reward"
    """The agent did its work and neither it nor the recipe's function gave a reward."""
    TIMEOUT = "timeout"
    """The attempt ran longer than its rollout allows."""
    LOST = "lost"
    """The worker stopped renewing its lease."""
    INFRASTRUCTURE = "infrastructure"
    """The gateway, engine or store failed under the agent; the agent is not to blame."""
    DIVERGED = "diverged"
    """A fork's agent asked for what its parent had not asked, so it is no branch of that one."""
    CANCELLED = "cancelled"
    """Somebody cancelled the rollout."""


class RetryRule(StrEnum):
    """Which fields of a `RetryPolicy` say whether a failure leads to another attempt."""

    NEVER = "never"
    AGENT = "retry_agent_errors, then max_attempts"
    ATTEMPTS = "max_attempts"
    INFRASTRUCTURE = "max_infrastructure_failures"
    """A limit of its own: such a failure doesn't count against `max_attempts`."""


RETRY_RULES: dict[FailureKind, RetryRule] = {
    FailureKind.AGENT: RetryRule.AGENT,
    FailureKind.NO_REWARD: RetryRule.AGENT,
    FailureKind.TIMEOUT: RetryRule.ATTEMPTS,
    FailureKind.LOST: RetryRule.INFRASTRUCTURE,
    FailureKind.INFRASTRUCTURE: RetryRule.INFRASTRUCTURE,
    FailureKind.DIVERGED: RetryRule.NEVER,
    FailureKind.CANCELLED: RetryRule.NEVER,
}
"""Kind of failure -> what decides about another attempt; `docs/concepts.md` has the same table."""


AGENT_FAILURES = frozenset({FailureKind.AGENT, FailureKind.TIMEOUT})
"""Failures that the agent is to blame for: those that `algorithm.failure_reward` rewards."""


class RetryPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How often a rollout is tried."""

    max_attempts: int = 2
    """Attempts that may end by `TIMEOUT` (and by the agent, if that is retried) before it fails."""
    retry_agent_errors: bool = False
    """Whether an exception or a missing reward of the agent itself is worth another attempt."""
    max_infrastructure_failures: int = 5
    """Attempts that may end by `LOST` or `INFRASTRUCTURE` before it fails."""

    def again(self, kind: FailureKind, failures: list[FailureKind]) -> bool:
        """Whether to try again after a failure of `kind`.

        Args:
            kind: the newest failure's.
            failures: all since the rollout was enqueued or an operator last retried it, the newest
                included.
        """
        rule = RETRY_RULES[kind]
        if rule is RetryRule.NEVER or (rule is RetryRule.AGENT and not self.retry_agent_errors):
            return False
        infrastructure = sum(RETRY_RULES[one] is RetryRule.INFRASTRUCTURE for one in failures)
        if rule is RetryRule.INFRASTRUCTURE:
            return infrastructure <= self.max_infrastructure_failures
        return len(failures) - infrastructure < self.max_attempts
