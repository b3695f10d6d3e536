"""A rollout with all its attempts, and one of its model calls whole."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightningrl.conversation.history import Recorded
from lightningrl.errors import NotFound
from lightningrl.schema import AttemptId, CallEvent, GroupId, Rollout, RolloutId
from lightningrl.store import LedgerEntry, RolloutQuery, Store
from lightningrl.traces import AttemptRecord, late_rewards, read_attempts
from lightningrl_ui.sources import Run
from lightningrl_ui.views.steps import (
    UNREADABLE,
    AttemptView,
    MessageView,
    attempt_view,
    message_view,
)


@dataclass(frozen=True)
class RolloutView:
    """A rollout."""

    rollout: Rollout
    attempts: tuple[AttemptRecord, ...]
    """Oldest first."""
    shown: AttemptView | None
    """The attempt that was asked for, else the last one. `None`: nobody has begun it."""
    late: frozenset[str]
    """Ids of rewards that came after an iteration had taken it."""
    taken: LedgerEntry | None
    """What the ledger says of its group. `None`: no iteration has taken it."""
    siblings: tuple[RolloutId | None, RolloutId | None]
    """The members before and after it."""
    parent: RolloutId | None
    """Of a branch what it was forked from, if that is still there. `None`: it is no branch, or it is gone."""


async def find_rollout(store: Store, run: Run, ident: str) -> Rollout:
    """A rollout of the run.

    Raises:
        NotFound: the run has none of that id.
    """
    found = await store.rollouts(RolloutQuery(run=run.name, ids=(RolloutId(ident),)))
    if not found:
        raise NotFound(f"run {run.name!r} has no rollout {ident!r}")
    return found[0]


async def rollout_view(store: Store, run: Run, ident: str, number: int | None) -> RolloutView:
    """A rollout, with the attempt of that number in full.

    Raises:
        NotFound: the run has no such rollout, or the rollout no such attempt.
    """
    rollout = await find_rollout(store, run, ident)
    spec = rollout.spec
    (attempts,) = await read_attempts(store, [rollout])
    shown = attempts[-1:] if number is None else [a for a in attempts if a.attempt.number == number]
    if number is not None and not shown:
        raise NotFound(f"rollout {ident!r} has no attempt {number}; it has {len(attempts)}")
    entries = await store.ledger(run.name, group_id=GroupId(spec.group_id))
    members = await store.rollouts(
        RolloutQuery(run=run.name, mode=spec.mode, iteration=spec.iteration, group_id=spec.group_id)
    )
    return RolloutView(
        rollout=rollout,
        attempts=tuple(attempts),
        shown=attempt_view(shown[0]) if shown else None,
        late=frozenset(event.id for one in attempts for event in late_rewards(entries, one)),
        taken=entries[-1] if entries else None,
        siblings=_siblings(sorted(members, key=lambda one: one.spec.member), rollout.id),
        parent=await _parent(store, rollout),
    )


async def _parent(store: Store, rollout: Rollout) -> RolloutId | None:
    """The rollout that a branch was forked from. `None`: it is no branch, or the parent was deleted."""
    fork = rollout.spec.fork
    if fork is None:
        return None
    try:
        parent, _ = await store.attempt(fork.attempt)
    except NotFound:
        return None
    return parent.id


def _siblings(
    members: Sequence[Rollout], ident: RolloutId
) -> tuple[RolloutId | None, RolloutId | None]:
    ids = [one.id for one in members]
    place = ids.index(ident)
    before = ids[place - 1] if place else None
    return before, ids[place + 1] if place + 1 < len(ids) else None


@dataclass(frozen=True)
class CallView:
    """One model call, whole."""

    rollout: Rollout
    record: AttemptRecord
    call: CallEvent
    messages: tuple[MessageView, ...]
    tools: tuple[str, ...]
    """Each tool that the model was offered, as indented JSON."""
    unreadable: str | None
    """Why messages and tools can't be read."""
    request: str
    """As the agent sent it, indented where it is JSON."""
    answers: tuple[MessageView, ...]
    """Of each choice."""
    raw_answers: tuple[str, ...]
    """Of each choice its message, as indented JSON."""


async def call_view(store: Store, run: Run, attempt_id: str, event_id: str) -> CallView:
    """A call with its whole conversation.

    Raises:
        NotFound: the run has no such attempt, or the attempt no such call.
    """
    rollout, attempt = await store.attempt(AttemptId(attempt_id))
    if rollout.spec.run != run.name:
        raise NotFound(f"run {run.name!r} has no attempt {attempt_id!r}")
    calls = await store.calls(attempt.id)
    place = next((i for i, one in enumerate(calls) if one.id == event_id), None)
    if place is None:
        raise NotFound(f"attempt {attempt_id!r} has no call {event_id!r}")
    call, recorded = calls[place], Recorded()
    messages: tuple[MessageView, ...] = ()
    tools: tuple[str, ...] = ()
    unreadable = None
    try:
        for earlier in calls[:place]:
            recorded.add(earlier)
        messages = tuple(map(message_view, recorded.messages(call)))
        tools = _tools(recorded.request(call))
    except UNREADABLE as error:
        unreadable = str(error)
    return CallView(
        rollout=rollout,
        record=AttemptRecord(rollout, attempt, (), ()),
        call=call,
        messages=messages,
        tools=tools,
        unreadable=unreadable,
        request=indented(call.request),
        answers=tuple(message_view(json.loads(one.message or b"{}")) for one in call.choices),
        raw_answers=tuple(indented(one.message) for one in call.choices),
    )


def _tools(request: Any) -> tuple[str, ...]:
    raw = request.get("tools")
    offered: Any = json.loads(bytes(raw)) if raw is not None else None
    return tuple(indented(json.dumps(one).encode()) for one in offered or ())


def indented(text: bytes) -> str:
    """JSON with indentation; what is none as it is."""
    try:
        return json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    except ValueError:
        return text.decode(errors="replace")
