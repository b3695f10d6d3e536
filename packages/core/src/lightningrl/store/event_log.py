"""Appending events and reading them back.

Invariants: an append is all or none; an event whose id the attempt already has changes nothing; only
rewards and logs are added to an attempt that has ended; what is read equals what was appended.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from lightningrl.errors import ConfigError, NotFound, StaleAttempt
from lightningrl.schema import AFTER_FINISH, FINAL, AttemptId, CallEvent, Event, RewardEvent
from lightningrl.store.compression import unpack
from lightningrl.store.deltas import Head, Shared, head_of, restore, shorten
from lightningrl.store.rows import Row
from lightningrl.store.session import Session

_decoder: msgspec.msgpack.Decoder[Event] = msgspec.msgpack.Decoder(Event)


class _Target(msgspec.Struct):
    """The attempt that an event goes to."""

    pk: int
    state: str
    rollout: int
    number: int


def check(events: Sequence[Event]) -> None:
    """Refuse what no store can keep.

    Raises:
        ConfigError: a reward is not a finite number.
    """
    for event in events:
        if isinstance(event, RewardEvent) and not math.isfinite(event.value):
            raise ConfigError(
                f"the reward {event.name!r} of attempt {event.attempt_id!r} is {event.value}; "
                "a reward must be a finite number"
            )


def append(session: Session, events: Sequence[Event]) -> None:
    """Append `events`, which were checked."""
    targets = {ident: _target(session, ident) for ident in {event.attempt_id for event in events}}
    fresh = [event for event in events if _accepted(session, event, targets[event.attempt_id])]
    for event in fresh:
        _insert(session, event, targets[event.attempt_id])


def read(session: Session, attempt_id: AttemptId) -> list[Event]:
    """The events of an attempt in order of arrival."""
    target = _target(session, attempt_id)
    return [
        event for _, event, _ in _restored(session.rows("events_of_attempt", attempt=target.pk))
    ]


def _target(session: Session, attempt_id: AttemptId) -> _Target:
    row = session.row("attempt_to_append_to", id=attempt_id)
    if row is None:
        raise NotFound(f"there is no attempt {attempt_id!r}; use the id that the claim gave")
    return _Target(*row)


def _accepted(session: Session, event: Event, target: _Target) -> bool:
    """Whether to add `event`; False where the ended attempt already has it."""
    if target.state == "running" or isinstance(event, AFTER_FINISH):
        return True
    if session.row("has_event", attempt=target.pk, id=event.id) is not None:
        return False
    raise StaleAttempt(
        f"attempt {event.attempt_id!r} is {target.state}, so its event {event.id!r} is refused; "
        "stop the agent, another attempt may have taken over"
    )


def _insert(session: Session, event: Event, target: _Target) -> None:
    shared: Shared | None = None
    stored = event
    if isinstance(event, CallEvent):
        stored, shared = shorten(event, _heads(session, target.pk))
    added = session.run(
        "insert_event",
        attempt=target.pk,
        id=event.id,
        kind=_kind(event),
        payload=session.packed(stored),
        base=shared and shared.base,
        shared_ids=shared and shared.ids,
        shared_head=shared and shared.head,
        shared_tail=shared and shared.tail,
    )
    if not added:
        return
    if isinstance(event, CallEvent):
        seq = session.connection.last_insert_rowid()
        _remember(session, target.pk, head_of(seq, event), shared)
    elif isinstance(event, RewardEvent) and event.step_id is None and event.name == FINAL:
        session.run(
            "reward_rollout",
            pk=target.rollout,
            number=target.number,
            value=event.value,
            revision=event.revision,
        )


def _kind(event: Event) -> str:
    return str(event.__struct_config__.tag)


def _heads(session: Session, attempt: int) -> list[Head]:
    """The calls that a new one may continue, read from the database after a restart."""
    heads = session.bases.get(attempt)
    if heads is None:
        for seq, call, shared in _restored(session.rows("calls_of_attempt", attempt=attempt)):
            assert isinstance(call, CallEvent)
            _remember(session, attempt, head_of(seq, call), shared)
        heads = session.bases.get(attempt) or []
    return heads


def _remember(session: Session, attempt: int, head: Head, shared: Shared | None) -> None:
    continued = None
    if shared is not None:
        bases = session.bases.get(attempt) or []
        whole = {one.seq: len(one.ids) for one in bases}
        continued = shared.base if whole.get(shared.base) == shared.ids else None
    session.bases.add(attempt, head, continued)


def _restored(rows: list[Row]) -> list[tuple[int, Event, Shared | None]]:
    """Place, event and what it shared, of one attempt's rows in order of arrival."""
    heads: dict[int, Head] = {}
    restored: list[tuple[int, Event, Shared | None]] = []
    for seq, payload, base, ids, head, tail in rows:
        event = _decoder.decode(unpack(payload))
        shared = None if base is None else Shared(base, ids, head, tail)
        if isinstance(event, CallEvent):
            if shared is not None:
                event = restore(event, shared, heads[shared.base])
            heads[seq] = head_of(seq, event)
        restored.append((seq, event, shared))
    return restored
