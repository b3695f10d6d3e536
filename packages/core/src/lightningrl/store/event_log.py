"""Appending events and reading them back.

Invariants: an append is all or none; an event whose id the attempt already has changes nothing, and a recorded answer
that one step of the attempt was given is refused to another; only
rewards and logs are added to an attempt that has ended, and the rewards of one that did not succeed reward
nothing; what is read equals what was appended.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
from msgspec.structs import force_setattr, replace

from lightningrl.errors import ConfigError, Conflict, LimitReached, NotFound, StaleAttempt
from lightningrl.schema import (
    AFTER_FINISH,
    FINAL,
    AttemptId,
    AttemptState,
    CallEvent,
    CallLimits,
    Event,
    RewardEvent,
)
from lightningrl.store import awaiting
from lightningrl.store.compression import unpack
from lightningrl.store.deltas import Head, Shared, head_of, restore, shorten, with_answer
from lightningrl.store.rows import ATTEMPT_PK, Row
from lightningrl.store.session import Session

_decoder: msgspec.msgpack.Decoder[Event] = msgspec.msgpack.Decoder(Event)

_REWARDED = frozenset({AttemptState.RUNNING, AttemptState.SUCCEEDED})
"""States of an attempt whose rewards are its rollout's."""


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


def append(session: Session, events: Sequence[Event], limits: CallLimits | None = None) -> None:
    """Append `events`, which were checked; see `Store.append`."""
    targets = {ident: _target(session, ident) for ident in {event.attempt_id for event in events}}
    fresh = [event for event in events if _accepted(session, event, targets[event.attempt_id])]
    for event in fresh:
        target = targets[event.attempt_id]
        if limits is not None and isinstance(event, CallEvent):
            _check_limits(session, event, target, limits)
        _insert(session, event, target)


def read(session: Session, attempt_id: AttemptId) -> list[Event]:
    """The events of an attempt in order of arrival."""
    attempt = _attempt(session, attempt_id)
    return _events(attempt_id, session.rows("events_of_attempt", attempt=attempt))


def calls(session: Session, attempt_id: AttemptId, above: int = 0) -> list[CallEvent]:
    """The model calls of an attempt in order of arrival, if it has more than `above`."""
    attempt = _attempt(session, attempt_id)
    if above:
        row = session.row("calls_so_far", attempt=attempt)
        assert row is not None, "counting gives a row"
        if row[0] <= above:
            return []
    found = _events(attempt_id, session.rows("calls_of_attempt", attempt=attempt))
    return [event for event in found if isinstance(event, CallEvent)]


def _attempt(session: Session, attempt_id: AttemptId) -> int:
    """The key of an attempt."""
    row = session.row("attempt_by_id", id=attempt_id)
    if row is None:
        raise NotFound(f"there is no attempt {attempt_id!r}; use the id that the claim gave")
    return row[ATTEMPT_PK]


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
        _check_step(session, event, target)
        return False
    raise StaleAttempt(
        f"attempt {event.attempt_id!r} is {target.state}, so its event {event.id!r} is refused; "
        "stop the agent, another attempt may have taken over"
    )


def _check_limits(session: Session, call: CallEvent, target: _Target, limits: CallLimits) -> None:
    """Refuse a new call of an attempt that has reached `limits`."""
    if session.row("has_event", attempt=target.pk, id=call.id) is not None:
        return
    # Another gateway's call of the attempt is counted either before this one or after it.
    session.row("lock_attempt", pk=target.pk)
    row = session.row("calls_so_far", attempt=target.pk)
    assert row is not None, "counting gives a row"
    counted = zip(("calls", "tokens"), row, (limits.calls, limits.tokens), strict=True)
    for what, count, limit in counted:
        if limit is not None and count >= limit:
            raise LimitReached(
                f"attempt {call.attempt_id!r} has {count} {what} of model calls recorded, all that it"
                " may have"
            )


def _insert(session: Session, event: Event, target: _Target) -> None:
    shared: Shared | None = None
    stored = event
    if isinstance(event, CallEvent):
        stored, shared = shorten(event, _heads(session, target.pk))
    elif _is_final(event):
        # Of two processes' rewards the one with the later place must be the later one to set the rollout's.
        session.row("lock_rollout", pk=target.rollout)
    seq = session.insert(
        "insert_event",
        attempt=target.pk,
        id=event.id,
        kind=_kind(event),
        prompt_tokens=event.prompt_tokens if isinstance(event, CallEvent) else None,
        completion_tokens=event.completion_tokens if isinstance(event, CallEvent) else None,
        # The row says whose event it is, and which.
        payload=session.packed(replace(stored, id="", attempt_id="")),
        base=shared and shared.base,
        shared_ids=shared and shared.ids,
        shared_head=shared and shared.head,
        shared_tail=shared and shared.tail,
    )
    if seq is None:
        _check_step(session, event, target)
        return
    if isinstance(event, CallEvent):
        _remember(session, target.pk, head_of(seq, event), shared)
    elif isinstance(event, RewardEvent):
        _reward(session, event, target)


def _check_step(session: Session, call: Event, target: _Target) -> None:
    """Refuse a recorded answer that another step of the attempt was given, by whatever gateway.

    Args: `call`, an event whose id the attempt has.
    """
    if not isinstance(call, CallEvent) or call.replay_of is None:
        return
    row = session.row("payload_of_event", attempt=target.pk, id=call.id)
    assert row is not None, "the attempt has an event of this id"
    given = _decoder.decode(unpack(row[0]))
    if not isinstance(given, CallEvent) or given.step_id != call.step_id:
        raise Conflict(
            f"the answer that call {call.id!r} of attempt {call.attempt_id!r} repeats was given to another step;"
            " look for the next one that was recorded"
        )


def _reward(session: Session, event: RewardEvent, target: _Target) -> None:
    if target.state not in _REWARDED:
        return  # kept, like a log; it changes nothing
    if _is_final(event):
        session.run(
            "reward_rollout",
            pk=target.rollout,
            number=target.number,
            value=event.value,
            revision=event.revision,
        )
    awaiting.arrived(
        session, target.rollout, target.pk, event.name, ended=target.state != "running"
    )


def _is_final(event: Event) -> bool:
    return isinstance(event, RewardEvent) and event.step_id is None and event.name == FINAL


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


def _events(attempt_id: AttemptId, rows: list[Row]) -> list[Event]:
    """The events of one attempt's rows in order of arrival: what `_restored` gives, for readers.

    Training reads every call of an iteration: no more is built here than the events themselves.
    """
    calls: dict[int, CallEvent] = {}
    """By place, restored: what later ones may continue."""
    events: list[Event] = []
    for seq, ident, payload, base, ids, head, tail in rows:
        event = _decoder.decode(unpack(payload))
        # Nobody else has this record yet; a copy would cost more than decoding it.
        force_setattr(event, "id", ident)
        force_setattr(event, "attempt_id", attempt_id)
        events.append(event)
        if not isinstance(event, CallEvent):
            continue
        calls[seq] = event
        if base is not None:
            continued = calls[base]
            answer = continued.choices[0].message if continued.choices else b""
            request = continued.request[:head] + with_answer(event.request, answer)
            if tail:
                request += continued.request[-tail:]
            force_setattr(event, "prompt_ids", _continuing(continued, ids, event.prompt_ids))
            force_setattr(event, "request", request)
    return events


def _continuing(base: CallEvent, shared: int, rest: bytes) -> bytes:
    """The first `shared` bytes of the ids of `base`, answer included, then `rest`."""
    answer = base.choices[0].token_ids if base.choices else b""
    if shared == len(base.prompt_ids) + len(answer):
        return b"".join((base.prompt_ids, answer, rest))
    return (base.prompt_ids + answer)[:shared] + rest


def _restored(rows: list[Row]) -> list[tuple[int, Event, Shared | None]]:
    """Place, event and what it shared, of one attempt's rows in order of arrival; without their ids."""
    heads: dict[int, Head] = {}
    restored: list[tuple[int, Event, Shared | None]] = []
    for seq, _, payload, base, ids, head, tail in rows:
        event = _decoder.decode(unpack(payload))
        shared = None
        if isinstance(event, CallEvent):
            if base is not None:
                shared = Shared(base, ids, head, tail)
                event = restore(event, shared, heads[base])
            heads[seq] = head_of(seq, event)
        restored.append((seq, event, shared))
    return restored
