"""Completion: a rollout that succeeded is complete when the rewards that it awaits are in, or their time ran out.

Invariant: a rollout is complete if and only if it has ended and no row of `awaited_rewards` is its own; then
the database gives it its place in the order of completion (`ended_seq`). Each function runs inside a transaction of the writer.
"""

from __future__ import annotations

from collections.abc import Sequence

from lightningrl.store import rows
from lightningrl.store.session import Session, Wake


def begin(session: Session, rollout: int, attempt: int, names: Sequence[str]) -> None:
    """Note what a new attempt awaits; what the former one had doesn't count for it."""
    if not names:
        return
    session.run("await_nothing", rollout=rollout)
    for name in dict.fromkeys(names):
        session.run("await_reward", rollout=rollout, name=name, attempt=attempt)


def failed(session: Session, rollout: int) -> None:
    """Note that the attempt ended without success: nothing is awaited of it any more."""
    session.run("await_nothing", rollout=rollout)


def ended(session: Session, rollout: int) -> None:
    """Complete a rollout that has just ended, unless it still awaits rewards."""
    if awaits(session, rollout):
        limit(session, rollout)
    else:
        _complete(session, rollout)


def awaits(session: Session, rollout: int) -> bool:
    """Whether a rollout awaits rewards."""
    return session.row("awaits_rewards", rollout=rollout) is not None


def limit(session: Session, rollout: int) -> None:
    """Note how long a rollout that has succeeded awaits rewards."""
    row = session.row("rollout_by_pk", pk=rollout)
    assert row is not None, "the caller has just changed it"
    found = rows.rollout(row)
    assert found.ended_at is not None, "it has succeeded"
    if found.spec.await_seconds is not None:
        until_us = rows.micros(found.ended_at) + rows.seconds_to_us(found.spec.await_seconds)
        session.run("await_until", rollout=rollout, until_us=until_us)


def expire(session: Session, now_us: int) -> None:
    """Complete the rollouts whose time for awaiting rewards ran out, with the rewards that they have."""
    due = session.rows("due_awaits", now_us=now_us)
    for rollout in dict.fromkeys(rollout for (rollout,) in due):
        give_up(session, rollout)


def give_up(session: Session, rollout: int) -> None:
    """Complete a rollout that has ended, with the rewards that it has."""
    session.run("await_nothing", rollout=rollout)
    _complete(session, rollout)


def arrived(session: Session, rollout: int, attempt: int, name: str, *, ended: bool) -> None:
    """Note that a reward is in; `ended` says whether its attempt has."""
    found = session.run("reward_arrived", rollout=rollout, attempt=attempt, name=name)
    if not found or not ended:  # only a success still awaits anything after its end
        return
    # Of two writers that bring the last two rewards the later one must see what the other brought.
    session.row("lock_rollout", pk=rollout)
    if not awaits(session, rollout):
        _complete(session, rollout)


def _complete(session: Session, rollout: int) -> None:
    session.run("complete_rollout", pk=rollout)
    session.wakes.add(Wake.ENDED)
