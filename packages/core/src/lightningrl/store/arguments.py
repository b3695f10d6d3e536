"""Arguments that no store can keep or look for, refused before anything is done: alike on every database."""

from __future__ import annotations

from collections.abc import Sequence

from lightningrl.errors import ConfigError
from lightningrl.schema import Event, NewRollout, RewardEvent

UNKEEPABLE = (OverflowError, UnicodeEncodeError)
"""What drivers and encoders raise of an integer beyond 64 bits, and of text that is not Unicode."""


def refused(error: Exception) -> ConfigError:
    """What one of `UNKEEPABLE` means for the caller."""
    return ConfigError(
        f"a store can't hold this: {error}; it holds integers of 64 bits, and text without lone surrogates"
    )


def check_limit(limit: int | None) -> None:
    """Refuse a limit below 0.

    Raises:
        ConfigError: it is.
    """
    if limit is not None and limit < 0:
        raise ConfigError(f"limit: {limit} is negative; give at least 0")


def check_names(*names: str | None) -> None:
    """Refuse names and ids with a NUL, which PostgreSQL doesn't take.

    Raises:
        ConfigError: there is one.
    """
    for name in names:
        if name is not None and "\0" in name:
            raise ConfigError(f"the name or id {name!r} holds a NUL; leave it out")


def check_rollouts(rollouts: Sequence[NewRollout]) -> None:
    """`check_names` for what is enqueued."""
    for one in rollouts:
        check_names(one.id, one.run, one.variant, one.task_id, one.group_id, *one.await_rewards)


def check_events(events: Sequence[Event]) -> None:
    """`check_names` for what is appended."""
    for event in events:
        check_names(event.id)
        if isinstance(event, RewardEvent):
            check_names(event.name)
