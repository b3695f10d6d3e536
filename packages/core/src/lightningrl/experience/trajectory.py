"""Rows: transitions merged on exact token prefixes into training sequences.

Invariants:
- A mask is True only on token ids that the engine sampled, with the log-prob it sampled them at.
- Every trainable token stands in exactly one row under a True mask.
- Nothing is tokenised here: where the next prompt does not continue a row's tokens exactly, a new row
  begins, and a `Break` says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from lightningrl.conversation.history import Message, Recorded, answer_of, is_continuation
from lightningrl.conversation.malformed import Malformed
from lightningrl.conversation.rewriting.thoughts import KEYS
from lightningrl.conversation.said import goes_on, tools_of
from lightningrl.experience.tokens import LogProbs, TokenIds, ids_from_bytes, logprobs_from_bytes
from lightningrl.experience.transition import Transition
from lightningrl.schema import CallEvent, Dialect, RolloutId, StepId, StepKind, reason_class

LossShare = Literal["tokens", "calls"]
"""What a rollout's weight in the loss is shared by."""

_WINDOW = 8
"""Tokens shown on each side of a break."""

_BYTES_PER_ID = 4
_BYTES_PER_LOGPROB = 4

UNTAKEN = "the agent went on with another answer of the same call"
"""Why of several answers (`n > 1`) the others are not trained."""


class Span(msgspec.Struct, frozen=True, gc=False):
    """Where one transition's sampled tokens stand in its row."""

    index: int
    """The transition's index within its trace."""
    start: int
    stop: int
    """Tokens [start, stop) of the row."""


@dataclass(frozen=True, eq=False)
class Row:
    """One training sequence of T tokens."""

    rollout_id: RolloutId
    token_ids: TokenIds
    """int32 [T]."""
    mask: NDArray[np.bool_]
    """bool [T]: True on tokens that are trained. Never True on the first token."""
    logprobs: LogProbs
    """float32 [T]: the engine's log-probs where `mask`, else 0."""
    advantages: NDArray[np.float32]
    """float32 [T]: loss weight times credit where `mask`, else 0; all 0 until `with_credit`."""
    spans: tuple[Span, ...]

    @property
    def trained_tokens(self) -> int:
        """How many tokens the mask selects."""
        return int(self.mask.sum())


CAUSES = ("retokenised", "stopped", "template", "edited", "truncated")
"""All that `Break.cause` may say."""


@dataclass(frozen=True)
class Break:
    """A later call whose prompt did not continue an earlier one."""

    rollout_id: RolloutId
    step_id: StepId
    cause: str
    """`retokenised`: the prompts part inside sampled tokens; `stopped`: inside those of an answer that a stop text cut;
    `template`: the messages go on, and the chat template writes what came before otherwise; `edited`: inside other tokens; `truncated`: the prompt ends inside an earlier row."""
    position: int
    """Index of the first token that differs."""
    expected: tuple[int, ...]
    """Up to 8 token ids of the earlier row from `position` on."""
    found: tuple[int, ...]
    """Up to 8 token ids of the new prompt from `position` on."""


@dataclass(frozen=True)
class Merge:
    """The rows of one rollout, and what did not merge."""

    rows: tuple[Row, ...]
    breaks: tuple[Break, ...]
    continued: int
    """Calls that continued a row."""
    continuing: int
    """Calls that should have: those that did, and those whose messages hold an earlier answer."""
    untrainable: dict[str, int]
    """Reason -> sampled tokens left out for it."""
    masked: int
    """Those of them that stand in a row as context; the others stand in no row."""


class _OpenRow:
    """A row while it grows."""

    __slots__ = ("answer", "last", "length", "logprobs", "prompt", "sampled", "spans", "stopped")

    def __init__(self) -> None:
        self.prompt = b""
        """Ids of the last call's prompt, as they travel: a prefix is compared in one step."""
        self.answer = b""
        """Ids that follow them: those of its answer."""
        self.length = 0
        self.spans: list[Span] = []
        self.logprobs: list[bytes] = []
        """Of each span, as they travel."""
        self.sampled: list[tuple[int, int]] = []
        """Where sampled tokens stand, untrained ones included."""
        self.last: CallEvent | None = None
        """The call whose answer ends it."""
        self.stopped = False
        """Whether a stop text cut the last answer, so that its message says less than its tokens."""

    def add(self, index: int, one: Transition) -> None:
        """Take what the call adds: the rest of its prompt, then its answer."""
        self.prompt, self.answer, self.last = one.prompt_bytes, one.token_bytes, one.call
        start = len(self.prompt) // _BYTES_PER_ID
        self.length = start + len(self.answer) // _BYTES_PER_ID
        if self.length == start:
            return
        self.sampled.append((start, self.length))
        self.stopped = one.choice is not None and one.choice.stop_text is not None
        if one.untrainable is None:
            self.spans.append(Span(index, start, self.length))
            self.logprobs.append(one.logprob_bytes)

    @property
    def tokens(self) -> bytes:
        """Ids as they travel."""
        return self.prompt + self.answer

    def precedes(self, prompt: bytes) -> bool:
        """Whether all of its tokens are a prefix of the prompt."""
        return prompt.startswith(self.prompt) and prompt.startswith(self.answer, len(self.prompt))

    @property
    def untrained(self) -> int:
        """Its sampled tokens that are not trained."""
        sampled = sum(stop - start for start, stop in self.sampled)
        return sampled - sum(span.stop - span.start for span in self.spans)

    def close(self, rollout_id: RolloutId) -> Row:
        # Filled as bytes: filling arrays span by span takes twice as long.
        mask = bytearray(self.length)
        logprobs = bytearray(self.length * _BYTES_PER_LOGPROB)
        for span, given in zip(self.spans, self.logprobs, strict=True):
            mask[span.start : span.stop] = b"\1" * (span.stop - span.start)
            start = span.start * _BYTES_PER_LOGPROB
            logprobs[start : start + len(given)] = given
        return Row(
            rollout_id=rollout_id,
            token_ids=ids_from_bytes(self.tokens),
            mask=np.frombuffer(mask, np.bool_),
            logprobs=logprobs_from_bytes(logprobs),
            advantages=np.zeros(self.length, np.float32),
            spans=tuple(self.spans),
        )


def merge(transitions: Sequence[Transition]) -> Merge:
    """Merge the `llm` transitions of one trace into rows.

    A call that continues a row which another call already continued (a branch) begins a row of its
    own, whose shared prefix is masked, so that no token is trained twice. Rows without a trained
    token are left out. No transitions give no rows.
    """
    rows: list[_OpenRow] = []
    breaks: list[Break] = []
    untrainable: dict[str, int] = {}
    continued = continuing = 0
    before = _Before(transitions)
    for index, one in enumerate(transitions):
        if one.kind is not StepKind.LLM:
            continue
        _count_left_out(one, untrainable)
        if not one.prompt_bytes:
            continue
        row = _continued_row(rows, one.prompt_bytes)
        if row is not None:
            continued += 1
            continuing += 1
        else:
            if one.call is not None and is_continuation(one.call):
                continuing += 1
                if rows:
                    breaks.append(_explain(rows, one, before.of(index)))
            row = _OpenRow()
            rows.append(row)
        row.add(index, one)
    kept = [row for row in rows if row.spans]
    return Merge(
        rows=tuple(row.close(transitions[0].rollout_id) for row in kept),
        breaks=tuple(breaks),
        continued=continued,
        continuing=continuing,
        untrainable=untrainable,
        masked=sum(row.untrained for row in kept) if untrainable else 0,
    )


@dataclass(frozen=True, eq=False)
class Packed:
    """R rows end to end, n tokens."""

    token_ids: TokenIds
    """int32 [n]."""
    mask: NDArray[np.bool_]
    """bool [n]."""
    logprobs: LogProbs
    """float32 [n]."""
    advantages: NDArray[np.float32]
    """float32 [n]."""
    lengths: NDArray[np.int64]
    """[R] tokens of each row."""


def pack(rows: Sequence[Row]) -> Packed:
    """Rows end to end, without padding; no rows give empty arrays."""
    none = [np.zeros(0, np.int32)], [np.zeros(0, np.bool_)], [np.zeros(0, np.float32)]
    return Packed(
        token_ids=np.concatenate([row.token_ids for row in rows] or none[0]),
        mask=np.concatenate([row.mask for row in rows] or none[1]),
        logprobs=np.concatenate([row.logprobs for row in rows] or none[2]),
        advantages=np.concatenate([row.advantages for row in rows] or none[2]),
        lengths=np.array([len(row.token_ids) for row in rows], np.int64),
    )


def loss_weights(
    rows: Sequence[Row], rollouts: float, share: LossShare = "tokens"
) -> list[list[float]]:
    """What each token of a span weighs in the loss, a plain token sum; per row and span.

    The weights of a rollout's trained tokens sum to 1 / `rollouts`, however many rows, calls or tokens it has.
    By `tokens` each of its tokens has the same part of that; by `calls` each of its calls has, so that a long
    answer counts no more than a short one.

    Args:
        rows: all rows of one rollout.
        rollouts: rollouts in the optimiser step, those without a row included. No whole number where rollouts share
            a weight with their branches.
        share: what shares a rollout's weight evenly.
    """
    spans = [[span.stop - span.start for span in row.spans] for row in rows]
    if share == "tokens":
        tokens = sum(map(sum, spans))
        return [[1 / (rollouts * tokens)] * len(of_row) for of_row in spans]
    calls = sum(map(len, spans))
    return [[1 / (rollouts * calls * length) for length in of_row] for of_row in spans]


def with_credit(
    rows: Sequence[Row], credit: Sequence[float], rollouts: float, share: LossShare = "tokens"
) -> list[Row]:
    """Rows of one rollout with `advantages` set to loss weight times credit.

    Args:
        rows: all rows of one rollout.
        credit: [transitions of its trace]; the credit of each.
        rollouts: see `loss_weights`.
        share: see `loss_weights`.
    """
    weighted: list[Row] = []
    for row, weights in zip(rows, loss_weights(rows, rollouts, share), strict=True):
        advantages = np.zeros(len(row.token_ids), np.float32)
        for span, weight in zip(row.spans, weights, strict=True):
            advantages[span.start : span.stop] = credit[span.index] * weight
        weighted.append(
            Row(row.rollout_id, row.token_ids, row.mask, row.logprobs, advantages, row.spans)
        )
    return weighted


def _count_left_out(one: Transition, untrainable: dict[str, int]) -> None:
    """Add the call's sampled tokens that are not trained to their reasons."""
    taken = len(one.token_bytes) // _BYTES_PER_ID
    why = None if one.untrainable is None else reason_class(one.untrainable)
    if taken and why is not None:
        untrainable[why] = untrainable.get(why, 0) + taken
    if taken and one.call is not None and len(one.call.choices) > 1:
        every = sum(len(choice.token_ids) for choice in one.call.choices) // _BYTES_PER_ID
        reason = why or UNTAKEN
        untrainable[reason] = untrainable.get(reason, 0) + every - taken


def _continued_row(rows: Sequence[_OpenRow], prompt: bytes) -> _OpenRow | None:
    """The longest row whose tokens are all a prefix of the prompt."""
    best: _OpenRow | None = None
    for row in rows:
        if (best is None or row.length > best.length) and row.precedes(prompt):
            best = row
    return best


class _Before:
    """The calls of a trace before one of them: each is taken up once, however many breaks are explained."""

    def __init__(self, transitions: Sequence[Transition]) -> None:
        self._transitions = transitions
        self._recorded = Recorded()
        self._taken = 0

    def of(self, index: int) -> Recorded:
        """Those before transition `index`, which is not less than it was; calls that can't be read are passed over."""
        while self._taken < index:
            call = self._transitions[self._taken].call
            self._taken += 1
            if call is not None:
                with suppress(*_UNREADABLE):
                    self._recorded.add(call)
        return self._recorded


_UNREADABLE = (Malformed, ValueError, TypeError, AttributeError)
"""What requests raise whose messages are none."""


def _explain(rows: Sequence[_OpenRow], one: Transition, before: Recorded) -> Break:
    """Why the prompt continues none of `rows`: judged by the row that agrees with it longest."""
    prompt_ids = one.prompt_ids
    position, row = max(
        ((_common_prefix(row, prompt_ids), row) for row in rows), key=lambda pair: pair[0]
    )
    tokens = ids_from_bytes(row.tokens)
    cause = "truncated" if position == len(prompt_ids) else _cause(row, position, one, before)
    return Break(
        rollout_id=one.rollout_id,
        step_id=one.step_id,
        cause=cause,
        position=position,
        expected=tuple(int(token) for token in tokens[position : position + _WINDOW]),
        found=tuple(int(token) for token in prompt_ids[position : position + _WINDOW]),
    )


def _cause(row: _OpenRow, position: int, one: Transition, before: Recorded) -> str:
    if row.stopped and position >= row.sampled[-1][0]:
        return "stopped"
    sampled = any(start <= position < stop for start, stop in row.sampled)
    if _is_by_template(row.last, one.call, before, sampled=sampled):
        return "template"
    return "retokenised" if sampled else "edited"


def _is_by_template(
    then: CallEvent | None, now: CallEvent | None, before: Recorded, *, sampled: bool
) -> bool:
    """Whether the messages go on and the chat template writes what came before otherwise: it leaves thoughts out.

    Inside sampled tokens that can be told of answers with thoughts alone, which were sent back.
    """
    if then is None or now is None or Dialect.COMPLETIONS in (then.dialect, now.dialect):
        return False
    try:
        asked, earlier = before.messages(now), before.messages(then)
        answer = answer_of(then)
        if not goes_on(asked, earlier, answer) or tools_of(then) != tools_of(now):
            return False
    except _UNREADABLE:
        return False
    return not sampled or _thinks(answer, asked[len(earlier)])


def _thinks(answer: Message, sent_back: Message) -> bool:
    if any(answer.get(key) for key in KEYS):
        return any(sent_back.get(key) for key in KEYS)
    return "</think>" in str(answer.get("content"))


def _common_prefix(row: _OpenRow, prompt_ids: TokenIds) -> int:
    tokens = ids_from_bytes(row.tokens)
    length = min(len(tokens), len(prompt_ids))
    if not length or tokens[0] != prompt_ids[0]:
        return 0  # other rows of a rollout often begin otherwise: another agent
    differs = tokens[:length] != prompt_ids[:length]
    return int(differs.argmax()) if differs.any() else length
