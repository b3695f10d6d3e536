"""What a model is asked, as an `llm` step keeps it where no gateway records the call.

Invariant: a conversation of T turns costs O(T): of a request that continues an earlier one of its rollout
only the messages that the earlier one lacks are kept. `lightningrl.conversation.recorded` puts them together.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import msgspec

from lightningrl.capture.jsonable import jsonable
from lightningrl.conversation.recorded import CONTINUES, KEPT, MESSAGES
from lightningrl.schema import StepId

_log = logging.getLogger(__name__)

_COMPARED = 8
"""Earlier requests of a rollout that one is compared with: agents that take turns have one each."""


class _Asked:
    """Key of a rollout's notes: its latest requests."""


def shortened(
    notes: dict[object, Any], asks: Callable[[], Mapping[str, Any]]
) -> tuple[Any, list[bytes] | None]:
    """The request of a step as JSON, without the messages that an earlier step of the rollout has.

    Args:
        notes: the rollout's, where its latest requests are noted.
        asks: makes the request. Where it raises there is none, `None`, and a line in the log.

    Returns:
        The request, and what `note_asked` takes; `None` for that: it has no messages to continue.
    """
    try:
        request: Any = jsonable(asks())
    except Exception:  # noqa: BLE001 - a framework's objects, looked at within the user's agent
        _log.warning("a model's request can't be recorded", exc_info=True)
        return None, None
    messages = request.get(MESSAGES) if isinstance(request, dict) else None
    if not isinstance(messages, list):
        return cast("Any", request), None
    marks = [_mark(one) for one in cast("list[Any]", messages)]
    base, kept = None, 0
    for earlier, theirs in _known(notes)[-_COMPARED:]:
        shared = _shared(marks, theirs)
        if shared > kept:
            base, kept = earlier, shared
    if base is None:
        return cast("Any", request), marks
    rest = cast("list[Any]", messages)[kept:]
    short = {**cast("dict[str, Any]", request), MESSAGES: rest, CONTINUES: base, KEPT: kept}
    return short, marks


def note_asked(notes: dict[object, Any], step_id: StepId, marks: list[bytes]) -> None:
    """Let later requests continue that of a step, whose start is on its way to be stored."""
    known = _known(notes)
    known.append((step_id, marks))
    del known[:-_COMPARED]


def _known(notes: dict[object, Any]) -> list[tuple[StepId, list[bytes]]]:
    return notes.setdefault(_Asked, [])


def _mark(message: Any) -> bytes:
    return hashlib.blake2b(msgspec.msgpack.encode(message), digest_size=16).digest()


def _shared(one: Sequence[bytes], other: Sequence[bytes]) -> int:
    """How many leading elements are the same."""
    count = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        count += 1
    return count
