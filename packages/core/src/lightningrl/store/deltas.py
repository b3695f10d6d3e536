"""Storage is linear: a call is stored as what the call it continues does not already hold.

A conversation of T turns sends its whole history T times. Stored is, of the prompt's token ids, what
follows their common beginning with an earlier call's prompt and answer ids, and, of the request, what
lies between its common beginning and its common end with that call's request, less the answer, which
that call holds too. `restore` gives the very bytes that `shorten` was given; where no earlier call
helps, the whole is stored.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from lightningrl.schema import CallEvent

_WORTH_BYTES = 64
"""Below this much in common a call is stored whole."""

_PROBE_BYTES = 32
"""How much of an answer is looked for in the next request."""

_MARK = b"\0"
"""Begins a request from which a part of an answer was cut; JSON never begins so."""

_CUT = struct.Struct("<III")
"""Where it was cut, where it begins in the answer, and its length."""

_HEADS = 8
"""Earlier calls of one attempt that are compared: its interleaved conversations."""

_STRIDE_BYTES = 64
"""How much is compared first."""

_MEMORY_BYTES = 64 << 20
"""Bound on the calls held for comparison; attempts that were silent longest are let go first."""


@dataclass(frozen=True, slots=True)
class Head:
    """A stored call that a later one may continue."""

    seq: int
    """Its place in the table of events."""
    ids: bytes
    """Prompt ids, then the ids of its first choice."""
    request: bytes
    answer: bytes
    """The message of its first choice, JSON."""

    @property
    def size(self) -> int:
        """Bytes held."""
        return len(self.ids) + len(self.request) + len(self.answer)


@dataclass(frozen=True, slots=True)
class Shared:
    """What a call has in common with its base. All lengths in bytes."""

    base: int
    """`Head.seq` of the base."""
    ids: int
    """Length of the common beginning of the ids."""
    head: int
    """Length of the common beginning of the requests."""
    tail: int
    """Length of the common end of the requests; never overlaps `head`."""


def head_of(seq: int, call: CallEvent) -> Head:
    """`call`, stored at `seq`, as a base for later calls."""
    if not call.choices:
        return Head(seq, call.prompt_ids, call.request, b"")
    answer = call.choices[0]
    return Head(seq, call.prompt_ids + answer.token_ids, call.request, answer.message)


def shorten(call: CallEvent, heads: list[Head]) -> tuple[CallEvent, Shared | None]:
    """`call` without what the best of `heads` holds, and how to put it back."""
    best: Shared | None = None
    for head in reversed(heads):
        shared = _shared(call, head)
        if best is None or _saved(shared) > _saved(best):
            best = shared
        if 0 < shared.ids == len(head.ids) or _is_whole(shared, call):
            break  # it continues or repeats this very call; the others can't hold more of it
    if best is None or _saved(best) < _WORTH_BYTES:
        return call, None
    (answer,) = (one.answer for one in heads if one.seq == best.base)
    short = msgspec.structs.replace(
        call,
        prompt_ids=call.prompt_ids[best.ids :],
        request=without_answer(call.request[best.head : len(call.request) - best.tail], answer),
    )
    return short, best


def restore(short: CallEvent, shared: Shared, base: Head) -> CallEvent:
    """The call that was shortened."""
    tail = base.request[len(base.request) - shared.tail :]
    return msgspec.structs.replace(
        short,
        prompt_ids=base.ids[: shared.ids] + short.prompt_ids,
        request=base.request[: shared.head] + with_answer(short.request, base.answer) + tail,
    )


def without_answer(text: bytes, answer: bytes) -> bytes:
    """`text` without what it repeats of `answer`; `with_answer` puts it back.

    The next request of a conversation has the last answer in it, framed otherwise. Part of the answer's middle
    is looked for, and from there on both sides as far as they are equal.
    """
    place = len(answer) // 2
    probe = answer[place : place + _PROBE_BYTES]
    at = text.find(probe) if len(probe) == _PROBE_BYTES else -1
    if at < 0:
        return _mark(0, 0, 0) + text if text.startswith(_MARK) else text
    before = common_suffix(text[:at], answer[:place], min(at, place))
    length = before + common_prefix(text[at:], answer[place:])
    start = at - before
    return _mark(start, place - before, length) + text[:start] + text[start + length :]


def with_answer(short: bytes, answer: bytes) -> bytes:
    """What `without_answer` was given."""
    if not short.startswith(_MARK):
        return short
    start, place, length = _CUT.unpack_from(short, len(_MARK))
    text = short[len(_MARK) + _CUT.size :]
    return text[:start] + answer[place : place + length] + text[start:]


def _mark(start: int, place: int, length: int) -> bytes:
    return _MARK + _CUT.pack(start, place, length)


def _is_whole(shared: Shared, call: CallEvent) -> bool:
    """Whether the base holds all of the prompt and of the request."""
    whole_request = shared.head + shared.tail == len(call.request)
    return whole_request and shared.ids == len(call.prompt_ids)


def _saved(shared: Shared) -> int:
    return shared.ids + shared.head + shared.tail


def _shared(call: CallEvent, head: Head) -> Shared:
    ids = common_prefix(call.prompt_ids, head.ids)
    start = common_prefix(call.request, head.request)
    longest_tail = min(len(call.request), len(head.request)) - start
    end = common_suffix(call.request, head.request, longest_tail)
    return Shared(base=head.seq, ids=ids, head=start, tail=end)


def common_prefix(one: bytes, other: bytes) -> int:
    """Length of the common beginning."""
    return _reach(lambda start, end: one[start:end] == other[start:end], min(len(one), len(other)))


def common_suffix(one: bytes, other: bytes, longest: int) -> int:
    """Length of the common end, at most `longest`."""
    size, other_size = len(one), len(other)
    return _reach(
        lambda start, end: (
            one[size - end : size - start] == other[other_size - end : other_size - start]
        ),
        longest,
    )


def _reach(equal: Callable[[int, int], bool], longest: int) -> int:
    """How far two texts are equal, at most `longest`: doubling strides, then halves of the last.

    A few comparisons of slices instead of one per byte; an early difference costs one.
    """
    reach, stride = 0, _STRIDE_BYTES
    while reach < longest:
        end = min(reach + stride, longest)
        if not equal(reach, end):
            break
        reach, stride = end, 2 * stride
    else:
        return longest
    while reach + 1 < end:  # equal up to `reach`, different before `end`
        middle = (reach + end) // 2
        if equal(reach, middle):
            reach = middle
        else:
            end = middle
    return reach


class Bases:
    """The heads of the attempts that were written to lately.

    Kept in step with the database: the attempts that a rolled-back transaction added to are
    forgotten, and read from the database when they are next needed.
    """

    def __init__(self, memory_bytes: int = _MEMORY_BYTES) -> None:
        self._limit = memory_bytes
        self._held = 0
        self._heads: OrderedDict[int, list[Head]] = OrderedDict()
        self._uncommitted: set[int] = set()

    def get(self, attempt: int) -> list[Head] | None:
        """The heads of `attempt`; None where they must be read from the database."""
        return self._heads.get(attempt)

    def add(self, attempt: int, head: Head, continued: int | None) -> None:
        """Remember `head`; it takes the place of the head with seq `continued`."""
        heads = self._heads.setdefault(attempt, [])
        self._uncommitted.add(attempt)
        others = [one for one in heads if one.seq != continued]
        kept = [*others[-(_HEADS - 1) :], head]
        self._held += _size(kept) - _size(heads)
        self._heads[attempt] = kept
        self._heads.move_to_end(attempt)
        while self._held > self._limit and len(self._heads) > 1:
            self._held -= _size(self._heads.popitem(last=False)[1])

    def forget(self, attempt: int) -> None:
        """Let go of an attempt: its heads are read from the database when they are next needed."""
        self._held -= _size(self._heads.pop(attempt, []))

    def committed(self) -> None:
        """What was added is in the database."""
        self._uncommitted.clear()

    def rolled_back(self) -> None:
        """Forget the attempts that were added to since the last commit."""
        for attempt in self._uncommitted:
            self._held -= _size(self._heads.pop(attempt, []))
        self._uncommitted.clear()


def _size(heads: list[Head]) -> int:
    return sum(head.size for head in heads)
