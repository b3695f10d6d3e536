"""Every error that LightningRL raises on purpose, as one tree.

    LightningError
    ├── ConfigError            a recipe, setting or argument is wrong; nothing was started
    ├── StoreError
    │   ├── NotFound           no such rollout, attempt, policy or run
    │   ├── Conflict           the same id was used for something else, or a move the state table forbids
    │   ├── StaleAttempt       the attempt is not running (any more): a late writer is refused
    │   ├── LimitReached       the attempt has made all the model calls that it may
    │   ├── StoreLocked        another process writes this store
    │   └── StoreUnavailable   the store can't be reached or can't be written now
    ├── AuthError              a key is missing, wrong, expired, or of another attempt
    ├── AgentError             the user's agent, reward or input function broke its contract
    │   ├── CommandFailed      a command ended with another status than 0
    │   └── NoReward           there is no reward where there must be one
    ├── RunError               a run can't go on; the message says why and what to do
    │   └── GuardTripped       training shows signs of collapse, and was stopped
    └── EngineError            the inference engine failed or refused

The message says what happened, to which id, and what to do about it. `code` is the stable name used
on the wire, so that the HTTP store's client raises the very class that the server caught.
"""

from __future__ import annotations

from typing import ClassVar


class LightningError(Exception):
    """Base of all errors raised by LightningRL on purpose."""

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1
    """Of a command that ends with it."""


class ConfigError(LightningError):
    """A recipe, setting or argument is wrong; nothing was started because of it."""

    code = "config"
    exit_code = 2


class StoreError(LightningError):
    """Base of all errors of the store."""

    code = "store"


class NotFound(StoreError):
    """There is no such rollout, attempt, policy or run."""

    code = "not_found"


class Conflict(StoreError):
    """An id was used for something else, or the state table forbids the move."""

    code = "conflict"


class StaleAttempt(StoreError):
    """The attempt is not running any more, so nothing that it writes is accepted."""

    code = "stale_attempt"


class LimitReached(StoreError):
    """The attempt has made all the model calls, or used all the tokens, that it may."""

    code = "limit_reached"


class StoreLocked(StoreError):
    """Another process is the writer of this store."""

    code = "store_locked"


class StoreUnavailable(StoreError):
    """The store can't be reached, or can't be written to now."""

    code = "store_unavailable"


class AuthError(LightningError):
    """A key is missing, wrong, expired, or belongs to another attempt."""

    code = "auth"


class AgentError(LightningError):
    """The user's agent, reward or input function broke its contract."""

    code = "agent"


class CommandFailed(AgentError):
    """An agent that is a command ended with another status than 0; the message ends with what it wrote last."""

    code = "command_failed"


class NoReward(AgentError):
    """Neither the agent nor the recipe's function rewarded the rollout."""

    code = "no_reward"


class RunError(LightningError):
    """A run can't go on."""

    code = "run"


class GuardTripped(RunError):
    """Training shows signs of collapse, and was stopped; its state is whole."""

    code = "guard"
    exit_code = 3


class NothingTrainable(RunError):
    """No token of an iteration may be trained, so going on would cost and teach nothing."""

    code = "nothing_trainable"
    exit_code = 3


class EngineError(LightningError):
    """The inference engine failed, or refused a request."""

    code = "engine"


def _subclasses(cls: type[LightningError]) -> list[type[LightningError]]:
    found = [cls]
    for child in cls.__subclasses__():
        found += _subclasses(child)
    return found


def error_from_code(code: str, message: str) -> LightningError:
    """The error with wire name `code`; an unknown code gives a plain `LightningError`."""
    for cls in _subclasses(LightningError):
        if cls.code == code:
            return cls(message)
    return LightningError(f"{code}: {message}")
