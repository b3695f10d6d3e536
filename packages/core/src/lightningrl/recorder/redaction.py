"""What of a recorded rollout is written: the user's `redact` sees every record of it first.

Invariant: nothing that `redact` did not return is written. Where it raises, or returns something else than
the record that it was given with other contents, the whole rollout is left out. Pure but for the hook.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from msgspec import structs

from lightningrl.conversation.recorded import (
    CONTINUES,
    KEPT,
    MESSAGES,
    continued,
    whole_requests,
)
from lightningrl.schema import (
    Attempt,
    Event,
    Failure,
    NewRollout,
    RewardEvent,
    StepEndEvent,
    StepKind,
    StepStartEvent,
)
from lightningrl.store.base import AttemptDump, RolloutDump

Record = Event | NewRollout | Attempt
"""What `redact` is given: the rollout with its task, each event, and the attempt with output and failure."""

Redact = Callable[[Any], Any]
"""Takes a `Record` and returns what to write of it; `None` leaves an event out."""

R = TypeVar("R")

_STEP_ID = re.compile("s-[0-9a-f]{32}")

_FIXED = frozenset(
    {
        *("id", "attempt_id", "rollout_id", "step_id", "parent_id", "kind", "at", "topic"),
        *("run", "mode", "iteration", "task_id", "group_id", "member", "variant", "revision"),
        *("number", "state", "worker", "lease_expires_at", "started_at", "ended_at", "value"),
        *("sampling", "timeout_seconds", "retry", "rewards", "await_rewards", "resources"),
    }
)
"""Fields that say what and where a record is; the hook may not change them."""


@dataclass(frozen=True)
class RedactionFailed(Exception):
    """The hook didn't do its work."""

    reason: str
    """What happened and where, without the text of an exception, which may be what was to be hidden."""


def redact_texts(change: Callable[[str], str]) -> Redact:
    """A `redact` hook that changes each text of each record: contents, names, errors, keys of maps.

    Which step a model's request continues stays as it is, or its messages would be lost.

    Args:
        change: from a text to what may be written of it.
    """

    def redact(record: Any) -> Any:
        changed: dict[str, Any] = {}
        for name in record.__struct_fields__:
            if name not in _FIXED:
                changed[name] = _texts(getattr(record, name), change)
        is_model = isinstance(record, StepStartEvent) and record.kind is StepKind.LLM
        if is_model and isinstance(record.inputs, Mapping):
            changed["inputs"] = _request(record.inputs, change)
        return structs.replace(record, **changed)

    return redact


def _request(inputs: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """A model's request: `messages` keep their name, and what it continues is a step's id and no text."""
    fixed: dict[str, Any] = {}
    if _STEP_ID.fullmatch(continued(inputs) or ""):
        fixed = {name: inputs[name] for name in (CONTINUES, KEPT)}
    if MESSAGES in inputs:
        fixed[MESSAGES] = _texts(inputs[MESSAGES], change)
    rest = {name: value for name, value in inputs.items() if name not in fixed}
    return {**_texts(rest, change), **fixed}


def _texts(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        items = cast("Mapping[Any, Any]", value).items()
        return {_texts(key, change): _texts(one, change) for key, one in items}
    if isinstance(value, list | tuple):
        return [_texts(one, change) for one in cast("list[Any]", value)]
    if isinstance(value, Failure):
        return Failure(kind=value.kind, message=change(value.message))
    return value


def redacted(dump: RolloutDump, redact: Redact | None) -> RolloutDump | None:
    """What is written of a rollout. `None`: the hook returned none for the rollout or its attempt.

    A step whose start the hook leaves out is left out whole: its end, its rewards, and that it was around
    other steps, which are then below the step around it. A later request that continues its own is made whole
    before the hook sees it.

    Raises:
        RedactionFailed: the hook raised, or returned what is no such record.
    """
    if redact is None:
        return dump
    [attempt] = dump.attempts
    spec = _ask(redact, dump.rollout.spec)
    ended = _ask(redact, attempt.attempt)
    if spec is None or ended is None:
        return None
    events: list[Event] = []
    gone: dict[str, Any] = {}
    for event in attempt.events:
        if isinstance(event, StepStartEvent) and continued(event.inputs) in gone:
            event = structs.replace(event, inputs=_requests(attempt.events)[event.step_id])
        kept = None if _of_step(event) in gone else _ask(redact, event)
        if kept is None:
            if isinstance(event, StepStartEvent):
                gone[event.step_id] = event.parent_id
            continue
        if isinstance(kept, StepStartEvent) and kept.parent_id in gone:
            parent: Any = kept.parent_id
            while parent in gone:
                parent = gone[parent]
            kept = structs.replace(kept, parent_id=parent)
        events.append(kept)
    rollout = structs.replace(dump.rollout, spec=spec)
    return RolloutDump(0, rollout, (AttemptDump(ended, attempt.deadline_at, tuple(events)),))


def redacted_reward(event: RewardEvent, redact: Redact | None) -> RewardEvent | None:
    """What is written of a reward that came later. `None`: nothing.

    Raises:
        RedactionFailed: as `redacted`.
    """
    return event if redact is None else _ask(redact, event)


def _requests(events: Iterable[Event]) -> dict[str, Any]:
    starts = (one for one in events if isinstance(one, StepStartEvent))
    return whole_requests({one.step_id: one.inputs for one in starts if one.kind is StepKind.LLM})


def _of_step(event: Event) -> Any:
    """The step that an event which is no start is about. `None`: none."""
    return event.step_id if isinstance(event, StepEndEvent | RewardEvent) else None


def _ask(redact: Redact, record: R) -> R | None:
    try:
        kept = redact(record)
        if kept is None:
            return None
        kind = type(record).__name__
        if type(kept) is not type(record):
            raise RedactionFailed(f"redact() returned a {type(kept).__name__} for a {kind}")
        for name in cast("Any", record).__struct_fields__:
            if name in _FIXED and getattr(kept, name) != getattr(record, name):
                raise RedactionFailed(f"redact() changed {name!r} of a {kind}")
    except RedactionFailed:
        raise
    except Exception as error:  # noqa: BLE001 - the hook is the user's, and so may raise anything
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{frame.filename}:{frame.lineno}"
        raise RedactionFailed(f"redact() raised {type(error).__name__} at {where}") from None
    return kept
