"""Between rows of the database and the records of `schema`.

Columns come in the order of the views `rollout_records` and `attempt_records`.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from msgspec.structs import replace

from lightningrl.schema import (
    Attempt,
    AttemptId,
    AttemptState,
    Failure,
    FailureKind,
    NewRollout,
    Resource,
    Rollout,
    RolloutId,
    RolloutState,
)
from lightningrl.store.compression import unpack

Row = tuple[Any, ...]

ROLLOUT_SPEC = 0
"""Where `rollout_records` has the blob that `spec` reads."""

ROLLOUT_PK = 8
"""Where `rollout_records` has the primary key."""

ROLLOUT_RUN = 10
"""Where `rollout_records` has the run."""

ROLLOUT_ITERATION = 12
"""Where `rollout_records` has the iteration, which a live rollout is given later than its spec."""

ATTEMPT_PK = 11
"""Where `attempt_records` has the primary key."""

ATTEMPT_ROLLOUT_PK = 12
"""Where `attempt_records` has the primary key of the attempt's rollout."""

ROLLOUT_ENDED_SEQ = 16
"""Where `rollout_records` has the place in the order of completion."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_specs = msgspec.msgpack.Decoder(NewRollout)


def micros(instant: datetime) -> int:
    """Microseconds since 1970."""
    return (instant - _EPOCH) // _MICROSECOND


def instant(us: int) -> datetime:
    """The inverse of `micros`."""
    return _EPOCH + us * _MICROSECOND


def seconds_to_us(seconds: float) -> int:
    """Seconds as whole microseconds."""
    return round(seconds * 1_000_000)


def spec(blob: bytes) -> NewRollout:
    """A rollout as it was enqueued."""
    return _specs.decode(unpack(blob))


def rollout(row: Row) -> Rollout:
    """From a row of `rollout_records`."""
    blob, state, attempts, reward, created_us, ended_us, forgiven, complete = row[:8]
    enqueued = spec(blob)
    if enqueued.iteration != row[ROLLOUT_ITERATION]:
        enqueued = replace(enqueued, iteration=row[ROLLOUT_ITERATION])
    return Rollout(
        spec=enqueued,
        state=RolloutState(state),
        attempts=attempts,
        reward=reward,
        created_at=instant(created_us),
        ended_at=None if ended_us is None else instant(ended_us),
        forgiven=forgiven,
        complete=bool(complete),
    )


def attempt(row: Row) -> Attempt:
    """From a row of `attempt_records`."""
    ident, rollout_id, number, state, worker, lease_us, started_us, ended_us = row[:8]
    kind, message, output = row[8:11]
    return Attempt(
        id=AttemptId(ident),
        rollout_id=RolloutId(rollout_id),
        number=number,
        state=AttemptState(state),
        worker=worker,
        lease_expires_at=instant(lease_us),
        started_at=instant(started_us),
        ended_at=None if ended_us is None else instant(ended_us),
        failure=None if kind is None else Failure(FailureKind(kind), message),
        output=None if output is None else msgspec.msgpack.decode(unpack(output)),
    )


def resource(row: Row) -> Resource:
    """From a row of the statements in `resources.sql`."""
    run, name, version, ident, created_us, value = row
    return Resource(
        run=run,
        name=name,
        version=version,
        value=msgspec.msgpack.decode(unpack(value)),
        created_at=instant(created_us),
        id=ident,
    )
