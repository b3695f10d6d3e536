"""Checks of what agents send: whether turns continue each other, and whether rollouts are apart."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from lightningrl.checks.differences import Difference, difference, messages_in
from lightningrl.checks.evidence import Evidence, Finding, Level, counted, delivered
from lightningrl.conversation.history import Message, answer_of, is_continuation
from lightningrl.experience.trajectory import Merge, merge
from lightningrl.schema import CallEvent
from lightningrl.traces import AttemptRecord

_MOST = 0.5
"""Share of the continuing calls from which on beginning anew is the rule, and not a shortened history."""
_EXPLAINED = 16
"""Rollouts whose messages are compared, at most: they are long."""
_FIRST_CALLS = 8
"""Calls of an attempt whose answers are looked for in other attempts."""


def broken_conversations(found: Evidence) -> Iterator[Finding]:
    """Calls that follow an earlier answer begin a row of their own: T rows for T turns."""
    merges = [(record, merge(record.transitions)) for record in found.decisive]
    broken = [(record, merged) for record, merged in merges if merged.breaks][:_EXPLAINED]
    meant = [(*one, why) for one in broken if (why := _why(*one)) is not None]
    breaks = sum(len(merged.breaks) for _, merged, _ in meant)
    calls = breaks + sum(merged.continued for _, merged in merges)
    if not breaks or breaks < _MOST * calls:
        return
    record, merged, why = meant[0]
    limit = found.recipe.guards.min_merged_share if found.recipe is not None else None
    beyond = limit is not None and 1 - breaks / calls < limit
    yield Finding(
        "broken conversations",
        Level.PROBLEM if beyond else Level.WARNING,
        f"{breaks} of {counted(calls, 'call')} that follow an earlier answer begin a row of their own, so the"
        " tokens to train over grow with every turn. In step"
        f" {merged.breaks[0].step_id!r} of rollout {record.rollout.id!r} {why.words}",
        why.remedy,
    )


def _why(record: AttemptRecord, merged: Merge) -> Difference | None:
    calls = [one.call for one in record.transitions if one.call is not None]
    places = {call.step_id: place for place, call in enumerate(calls)}
    return difference(calls, places[merged.breaks[0].step_id])


def carried_over(found: Evidence) -> Iterator[Finding]:
    """The first call of an attempt holds answers that another attempt got: state outlives a rollout."""
    firsts = [(record, calls[0]) for record in found.attempts if (calls := delivered(record))]
    held = {
        record.attempt.id: _answers_in(call) for record, call in firsts if is_continuation(call)
    }
    if not held:
        return
    given = _given(found)
    seen: list[tuple[AttemptRecord, str]] = []
    for record, _ in firsts:
        for turn in held.get(record.attempt.id, ()):
            # What its owner was shown as well, before it was given it, is an example in the prompt.
            owners = [
                one for one in given.get(turn, ()) if turn not in held.get(one.attempt.id, ())
            ]
            if owners and owners[0].attempt.id != record.attempt.id:
                seen.append((record, owners[0].rollout.id))
                break
    if seen:
        record, whose = seen[0]
        yield Finding(
            "carried-over state",
            Level.PROBLEM,
            f"the first call of {counted(len(seen), 'attempt')} already holds answers that it never got: in"
            f" rollout {record.rollout.id!r} one that rollout {whose!r} was given",
            "begin each rollout with an empty history: a thread id or session id of its own (LangGraph's"
            " thread_id, SQLiteSession), no list of messages at module level, an agent built within the"
            " function that runs it",
        )


_Turn = tuple[str, str]
"""What was said last before an answer, and the answer."""


def _given(found: Evidence) -> dict[_Turn, list[AttemptRecord]]:
    """Turn -> the attempts that took it."""
    given: dict[_Turn, list[AttemptRecord]] = defaultdict(list)
    for record in found.attempts:
        for call in delivered(record)[:_FIRST_CALLS]:
            asked = messages_in(call)
            if asked:
                given[_turn(asked[-1], answer_of(call))].append(record)
    return given


def _answers_in(call: CallEvent) -> list[_Turn]:
    """The answers in a request, each with what was said before it."""
    messages = messages_in(call) or []
    return [
        _turn(asked, answer)
        for asked, answer in pairwise(messages)
        if answer.get("role") == "assistant"
    ]


def _turn(asked: Message, answer: Message) -> _Turn:
    said = [answer.get("content") or None, answer.get("tool_calls") or None]
    return json.dumps(asked.get("content")), json.dumps(said, sort_keys=True)


def same_prompt(found: Evidence) -> Iterator[Finding]:
    """Rollouts of distinct tasks begin with the same prompt, so the policy can't tell them apart."""
    tasks: dict[bytes, dict[str, str]] = defaultdict(dict)
    for record in found.decisive:
        asked = next((messages_in(call) for call in delivered(record)), None)
        if asked:
            spec = record.rollout.spec
            row = {key: value for key, value in spec.task.items() if key != "id"}
            tasks[_digest(asked)].setdefault(_canonical(row), spec.task_id)
    shared = [list(of_prompt.values()) for of_prompt in tasks.values() if len(of_prompt) > 1]
    if shared:
        most = max(shared, key=len)
        named = ", ".join(map(repr, most[:3])) + (", ..." if len(most) > 3 else "")
        yield Finding(
            "same prompt",
            Level.WARNING,
            f"{len(most)} distinct tasks ({named}) begin with the same prompt",
            "pass what is asked on to the model: the agent, or the recipe's `input`, gets the task's row. Right"
            " only where the task shows in later turns, as in a game",
        )


def _digest(messages: Sequence[Message]) -> bytes:
    return hashlib.blake2b(_canonical(messages).encode(), digest_size=16).digest()


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
