"""Rows: transitions merged on exact token prefixes into training sequences.

Invariants:
- A mask is True only on token ids that the engine sampled, with the log-prob it sampled them at.
- Every trainable token stands in exactly one row under a True mask.
- Nothing is tokenised here: where the next prompt does not continue a row's tokens exactly, a new row
  begins, and a `Break` says why.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightningrl.schema import RolloutId, StepId, StepKind
from lightningrl.tokens import LogProbs, TokenIds
from lightningrl.transition import Transition

_WINDOW = 8
"""Tokens shown on each side of a break."""


@dataclass(frozen=True)
class Span:
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


@dataclass(frozen=True)
class Break:
    """A later call whose prompt did not continue an earlier one."""

    rollout_id: RolloutId
    step_id: StepId
    cause: str
    """`retokenised`: the prompts part inside sampled tokens; `edited`: inside other tokens;
    `truncated`: the prompt ends inside an earlier row."""
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
    """Calls that should have: those whose messages hold an earlier answer."""
    untrainable: dict[str, int]
    """Reason -> sampled tokens left out for it."""


class _OpenRow:
    """A row while it grows."""

    def __init__(self) -> None:
        self.pieces: list[tuple[TokenIds, bool, LogProbs | None]] = []
        self.spans: list[Span] = []
        self.tokens = b""
        self.length = 0

    def extend(self, ids: TokenIds, trained: bool, logprobs: LogProbs | None) -> None:
        if len(ids):
            self.pieces.append((ids, trained, logprobs))
            self.tokens += ids.tobytes()
            self.length += len(ids)

    def close(self, rollout_id: RolloutId) -> Row:
        mask = np.concatenate([np.full(len(ids), on, np.bool_) for ids, on, _ in self.pieces])
        logprobs = np.concatenate(
            [
                np.zeros(len(ids), np.float32) if given is None else given
                for ids, _, given in self.pieces
            ]
        )
        return Row(
            rollout_id=rollout_id,
            token_ids=np.concatenate([ids for ids, _, _ in self.pieces]),
            mask=mask,
            logprobs=logprobs,
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
    for index, one in enumerate(transitions):
        if one.kind is not StepKind.LLM:
            continue
        if one.untrainable is not None and len(one.token_ids):
            untrainable[one.untrainable] = untrainable.get(one.untrainable, 0) + len(one.token_ids)
        if not len(one.prompt_ids):
            continue
        row = _continued_row(rows, one.prompt_ids)
        continues = _has_answer(one)
        continuing += continues
        if row is not None:
            continued += 1
        else:
            if continues and rows:
                breaks.append(_explain(rows, one))
            row = _OpenRow()
            rows.append(row)
        row.extend(one.prompt_ids[row.length :], False, None)
        trained = one.untrainable is None
        if trained and len(one.token_ids):
            row.spans.append(Span(index, row.length, row.length + len(one.token_ids)))
        row.extend(one.token_ids, trained, one.logprobs if trained else None)
    return Merge(
        rows=tuple(row.close(transitions[0].rollout_id) for row in rows if row.spans),
        breaks=tuple(breaks),
        continued=continued,
        continuing=continuing,
        untrainable=untrainable,
    )


def with_credit(rows: Sequence[Row], credit: Sequence[float], rollouts: int) -> list[Row]:
    """Rows of one rollout with `advantages` set to loss weight times credit.

    The loss is a plain token sum, and token weights are 1 / (rollouts * tokens), with `tokens` the
    trained tokens of all rows of this rollout: each rollout weighs 1 / `rollouts` however many rows,
    calls or tokens it has ("rollout mean, token-flat").

    Args:
        rows: all rows of one rollout.
        credit: [transitions of its trace]; the credit of each.
        rollouts: rollouts in the optimiser step, those without a row included.
    """
    tokens = sum(row.trained_tokens for row in rows)
    weighted: list[Row] = []
    for row in rows:
        advantages = np.zeros(len(row.token_ids), np.float32)
        for span in row.spans:
            advantages[span.start : span.stop] = credit[span.index] / (rollouts * tokens)
        weighted.append(
            Row(row.rollout_id, row.token_ids, row.mask, row.logprobs, advantages, row.spans)
        )
    return weighted


def _continued_row(rows: Sequence[_OpenRow], prompt_ids: TokenIds) -> _OpenRow | None:
    """The longest row whose tokens are all a prefix of the prompt."""
    prompt = prompt_ids.tobytes()
    best: _OpenRow | None = None
    for row in rows:
        if (best is None or row.length > best.length) and prompt.startswith(row.tokens):
            best = row
    return best


def _has_answer(one: Transition) -> bool:
    """Whether the request holds an assistant's message, so that it continues an earlier call."""
    if one.call is None:
        return False
    request: dict[str, Any] = json.loads(one.call.request or b"{}")
    return any(message.get("role") == "assistant" for message in request.get("messages") or ())


def _explain(rows: Sequence[_OpenRow], one: Transition) -> Break:
    """Why the prompt continues none of `rows`: judged by the row that agrees with it longest."""
    position, row = max(
        ((_common_prefix(row, one.prompt_ids), row) for row in rows), key=lambda pair: pair[0]
    )
    tokens = np.frombuffer(row.tokens, np.int32)
    if position == len(one.prompt_ids):
        cause = "truncated"
    else:
        sampled = np.concatenate([np.full(len(ids), on) for ids, on, _ in row.pieces])
        cause = "retokenised" if sampled[position] else "edited"
    return Break(
        rollout_id=one.rollout_id,
        step_id=one.step_id,
        cause=cause,
        position=position,
        expected=tuple(int(token) for token in tokens[position : position + _WINDOW]),
        found=tuple(int(token) for token in one.prompt_ids[position : position + _WINDOW]),
    )


def _common_prefix(row: _OpenRow, prompt_ids: TokenIds) -> int:
    tokens = np.frombuffer(row.tokens, np.int32)
    length = min(len(tokens), len(prompt_ids))
    differs = np.flatnonzero(tokens[:length] != prompt_ids[:length])
    return int(differs[0]) if len(differs) else length
