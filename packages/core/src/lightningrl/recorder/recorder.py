"""Records rollouts of a process that runs for people, not for training.

Invariant: `begin`, `end` and `feedback` neither wait for a store nor raise what one says; what they
can't keep is counted, and said in the log. A rollout is recorded whole or not at all.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec

from lightningrl.capture.context import RolloutContext
from lightningrl.capture.jsonable import json_map, jsonable
from lightningrl.recorder.intake import EndedRollout, Feedback, Intake, OpenRollout
from lightningrl.recorder.redaction import Redact
from lightningrl.recorder.writer import StoreWriter, attempt_id
from lightningrl.schema import (
    Failure,
    GroupId,
    Mode,
    NewRollout,
    RetryPolicy,
    RewardEvent,
    RolloutId,
    StepId,
    new_id,
)

_log = logging.getLogger(__name__)

_SAMPLING_BYTES = 6
"""Of an id's hash: 48 bits, which a float holds exactly."""


@dataclass(frozen=True)
class Counts:
    """What became of a process's rollouts and feedback."""

    written: int
    """In the store."""
    waiting: int
    """Ended or given, and neither written nor dropped."""
    sampled_out: int
    """Rollouts that `sampling_rate` left out."""
    dropped: Mapping[str, int]
    """Reason -> how many are lost: `no room` (the store is away or too slow), `redaction`, `refused` (by
    the store), `unknown rollout` (feedback for one that is not there)."""


@dataclass(slots=True, eq=False)
class _Open:
    """A rollout under way."""

    spec: NewRollout
    sink: OpenRollout
    started_at: datetime


class Recorder:
    """Made by `lightningrl.record`, which see."""

    def __init__(
        self,
        url: str,
        *,
        key: str | None,
        run: str,
        sampling_rate: float,
        redact: Redact | None,
        memory_bytes: int,
    ) -> None:
        """Nothing is opened or started before the first rollout ends."""
        self.run = run
        """The run that rollouts are of unless they say otherwise."""
        self._url, self._key = url, key
        self._rate = sampling_rate
        self._redact = redact
        self._intake = Intake(memory_bytes)
        self._lock = threading.Condition()
        """Notified when a rollout has ended."""
        self._writer: StoreWriter | None = None
        self._open: dict[RolloutId, _Open] = {}
        self._sampled_out = self._written_before = 0
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._begin_anew)

    def _begin_anew(self) -> None:
        """In a forked child, which has no thread, and whose rollouts under way are its parent's."""
        for one in self._open.values():
            one.sink.dropped = True
        self._intake.begin_anew()
        self._lock = threading.Condition()
        self._abandoned = self._writer  # not collected: that would close the parent's connections
        self._writer = None
        self._open = {}
        self._sampled_out = self._written_before = 0

    # -- rollouts ------------------------------------------------------------------------------

    def begin(
        self, rollout_id: RolloutId, task: Mapping[str, Any], run: str | None, timeout: float
    ) -> RolloutContext | None:
        """Begin a rollout. `None`: it is not in the sample, and nothing of it is kept."""
        if not in_sample(rollout_id, self._rate):
            with self._lock:
                self._sampled_out += 1
            return None
        spec = NewRollout(
            id=rollout_id,
            run=run or self.run,
            mode=Mode.LIVE,
            iteration=0,
            task_id=rollout_id,
            group_id=GroupId(rollout_id),
            member=0,
            task=json_map(task),
            timeout_seconds=timeout,
            retry=RetryPolicy(max_attempts=1),
        )
        sink = OpenRollout(self._intake)
        with self._lock:
            self._open[rollout_id] = _Open(spec, sink, datetime.now(UTC))
        return RolloutContext(
            rollout_id=rollout_id,
            attempt_id=attempt_id(rollout_id),
            server_url="",
            key="",
            sink=sink,
            has_gateway=False,
        )

    def rewards(self, context: RolloutContext) -> list[RewardEvent]:
        """The rewards that a rollout under way was given so far."""
        with self._lock:
            known = self._open.get(context.rollout_id)
        return [] if known is None else list(known.sink.rewards)

    def end(self, context: RolloutContext, output: Any, failure: Failure | None) -> None:
        """End a rollout, and hand it to the writer."""
        context.close()
        with self._lock:
            known = self._open.get(context.rollout_id)
        if known is None:
            return  # begun in the process that this one was forked from
        try:
            if self._intake.seal(known.sink):
                self._hand_over(known, output, failure)
        finally:
            with self._lock:  # not before: at the process's end somebody waits for it
                self._open.pop(context.rollout_id, None)
                self._lock.notify_all()

    def _hand_over(self, known: _Open, output: Any, failure: Failure | None) -> None:
        shown = msgspec.msgpack.encode(jsonable(output))
        more = len(shown) + len(msgspec.msgpack.encode(known.spec))
        ended = EndedRollout(
            spec=known.spec,
            events=tuple(known.sink.events),
            held_bytes=known.sink.held_bytes + more,
            failure=failure,
            output=shown,
            started_at=known.started_at,
            ended_at=datetime.now(UTC),
        )
        if self._intake.put(ended, more_bytes=more):
            self._start_writer()

    def feedback(
        self, rollout_id: str, value: float, step_id: StepId | None, name: str, source: str
    ) -> None:
        """Hand a reward that came later to the writer."""
        item = Feedback(
            event_id=new_id("e"),
            rollout_id=rollout_id,
            value=value,
            step_id=step_id,
            name=name,
            source=source,
            at=datetime.now(UTC),
        )
        if self._intake.put(item, more_bytes=item.held_bytes):
            self._start_writer()

    def _start_writer(self) -> None:
        with self._lock:
            if self._writer is None:
                self._writer = StoreWriter(self._intake, self._url, self._key, self._redact)

    # -- its end -------------------------------------------------------------------------------

    def flush(self, timeout_seconds: float = 10.0) -> bool:
        """Wait until what has ended by now is written or dropped; `False`: it took too long."""
        return self._intake.wait_settled(timeout_seconds)

    def flush_for_good(self, timeout_seconds: float) -> None:
        """Flush, and say so where something is left that won't be written."""
        if not self.flush(timeout_seconds):
            _log.warning(
                "recording ended with %d rollout(s) or feedback not written", self._intake.waiting
            )

    def wait_ended(self, timeout_seconds: float) -> int:
        """Wait until the rollouts under way have ended; how many have not."""
        with self._lock:
            self._lock.wait_for(lambda: not self._open, timeout_seconds)
            return len(self._open)

    def close(self, timeout_seconds: float = 10.0) -> None:
        """Flush and let go of the store. Closing again changes nothing; what ends later opens it anew."""
        self.flush_for_good(timeout_seconds)
        with self._lock:
            writer, self._writer = self._writer, None
        if writer is not None:
            writer.stop(timeout_seconds)
            self._written_before += writer.written

    @property
    def is_writing(self) -> bool:
        """Whether something has come since it was closed."""
        return self._writer is not None

    @property
    def counts(self) -> Counts:
        """What became of this process's rollouts and feedback so far."""
        with self._lock:
            written = 0 if self._writer is None else self._writer.written
            sampled_out = self._sampled_out
        return Counts(
            written=self._written_before + written,
            waiting=self._intake.waiting,
            sampled_out=sampled_out,
            dropped=self._intake.drops,
        )


def new_rollout_id() -> RolloutId:
    """An id for a rollout that was not enqueued."""
    return RolloutId(new_id("live"))


def in_sample(rollout_id: RolloutId, rate: float) -> bool:
    """Whether a rollout is in a sample of share `rate`, by its id alone, so that all ask alike."""
    hashed = hashlib.blake2b(rollout_id.encode(), digest_size=_SAMPLING_BYTES).digest()
    return int.from_bytes(hashed) < rate * 256**_SAMPLING_BYTES
