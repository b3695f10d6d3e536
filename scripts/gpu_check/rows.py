"""Rows to train on: of random tokens, of an engine's answers, and of conversations of many turns."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray
from sizes import Shape, Size

from lightningrl.credit import broadcast
from lightningrl.experience.trajectory import Row, merge, with_credit
from lightningrl.experience.transition import Group, Trace, Transition
from lightningrl.schema import (
    Attempt,
    AttemptId,
    AttemptState,
    Mode,
    NewRollout,
    Rollout,
    RolloutId,
    RolloutState,
    StepId,
    StepKind,
    group_id,
    rollout_id,
)
from lightningrl_verl.training.rows import one_row_per_call

_GROUP = group_id("gpu-check", Mode.TRAIN, 1, "task")


def random_rows(shape: Shape, lengths: Sequence[int]) -> list[Row]:
    """Rows of random tokens whose second half is trained, at random advantages."""
    draw = np.random.default_rng(0)
    rows: list[Row] = []
    for index, length in enumerate(lengths):
        mask = np.arange(length) >= length // 2
        ids = draw.integers(0, shape.vocab_size, length).astype(np.int32)
        advantages = (mask * draw.choice([-1.0, 1.0]) / mask.sum() / len(lengths)).astype(
            np.float32
        )
        nothing = np.zeros(length, np.float32)
        rows.append(Row(RolloutId(f"random-{index}"), ids, mask, nothing, advantages, ()))
    return rows


def mixed_lengths(size: Size) -> list[int]:
    """From an eighth of the longest row up to all of it, evenly spread."""
    return np.linspace(size.row_tokens // 8, size.row_tokens, size.rows).astype(int).tolist()


def answered_rows(
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    logprobs: Sequence[Sequence[float]],
) -> list[Row]:
    """Prompts and their answers through core's own layers, one transition each."""
    traces = [
        _trace(member, [_call(member, 0, prompt, answer, np.array(scores, np.float32))])
        for member, (prompt, answer, scores) in enumerate(
            zip(prompts, answers, logprobs, strict=True)
        )
    ]
    return _rows(traces, merged=True)


def conversation_rows(shape: Shape, size: Size, *, merged: bool) -> list[Row]:
    """Conversations in which each prompt continues the last answer: a row each, or a row a call.

    Every second one is rewarded; all form one group, and a call has the same credit either way.
    """
    draw = np.random.default_rng(0)
    nothing = np.zeros(size.turn_tokens, np.float32)
    traces: list[Trace] = []
    for member in range(size.conversations):
        tokens = draw.integers(0, shape.vocab_size, size.first_tokens).tolist()
        calls: list[Transition] = []
        for turn in range(size.turns):
            answer, read = draw.integers(0, shape.vocab_size, (2, size.turn_tokens)).tolist()
            calls.append(_call(member, turn, tokens, answer, nothing))
            tokens = [*tokens, *answer, *read]
        traces.append(_trace(member, calls))
    return _rows(traces, merged=merged)


def _rows(traces: Sequence[Trace], *, merged: bool) -> list[Row]:
    (credit,) = broadcast([Group(_GROUP, tuple(traces))])
    rows = [
        row
        for trace, credit_T in zip(traces, credit, strict=True)
        for row in with_credit(merge(trace.transitions).rows, credit_T, len(traces))
    ]
    return rows if merged else one_row_per_call(rows)


def _trace(member: int, calls: Sequence[Transition]) -> Trace:
    now = datetime.now(UTC)
    name = rollout_id(_GROUP, member)
    spec = NewRollout(
        id=name,
        run="gpu-check",
        mode=Mode.TRAIN,
        iteration=1,
        task_id="task",
        group_id=_GROUP,
        member=member,
        task={},
    )
    reward = float(member % 2)
    rollout = Rollout(spec, RolloutState.SUCCEEDED, 1, reward, now, now)
    attempt = Attempt(
        AttemptId(name), name, 1, AttemptState.SUCCEEDED, "check", now, now, now, None, None
    )
    return Trace(rollout, attempt, tuple(calls), reward)


def _call(
    member: int,
    turn: int,
    prompt: Sequence[int],
    answer: Sequence[int],
    logprobs: NDArray[np.float32],
) -> Transition:
    name = rollout_id(_GROUP, member)
    return Transition(
        step_id=StepId(f"{name}-{turn}"),
        rollout_id=name,
        attempt_id=AttemptId(name),
        kind=StepKind.LLM,
        name="policy",
        agent=None,
        parent_id=None,
        started_at=datetime.now(UTC),
        prompt_bytes=np.array(prompt, "<i4").tobytes(),
        token_bytes=np.array(answer, "<i4").tobytes(),
        logprob_bytes=logprobs.astype("<f4").tobytes(),
    )
