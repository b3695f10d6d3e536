"""One rollout as a tree for the terminal: attempts, steps by parent, calls with their tokens.

Invariant: pure. Everything shown comes from the arguments, and texts of agents are never read as
terminal markup.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, cast

from rich.text import Text
from rich.tree import Tree

from lightningrl.experience.transition import Transition, unjoined_rewards
from lightningrl.schema import (
    UNJUDGED,
    Attempt,
    AttemptState,
    CallEvent,
    LogEvent,
    RewardEvent,
    Rollout,
    RolloutState,
    StepId,
    StepKind,
)
from lightningrl.traces import AttemptRecord, outline

SHORT = 160
"""Characters of a text that are shown unless everything is asked for."""

_STATE_STYLE: dict[RolloutState | AttemptState, str] = {
    RolloutState.SUCCEEDED: "green",
    RolloutState.FAILED: "red",
    RolloutState.CANCELLED: "yellow",
    RolloutState.RUNNING: "cyan",
    RolloutState.QUEUED: "dim",
    AttemptState.SUCCEEDED: "green",
    AttemptState.FAILED: "red",
    AttemptState.TIMED_OUT: "red",
    AttemptState.LOST: "red",
    AttemptState.RUNNING: "cyan",
}


def rollout_tree(
    rollout: Rollout,
    records: Sequence[AttemptRecord],
    credit: Sequence[float] | None,
    *,
    late: Sequence[RewardEvent] = (),
    limit: int | None = SHORT,
) -> Tree:
    """Draw one rollout.

    Args:
        rollout: its state now.
        records: all its attempts, oldest first.
        credit: of the succeeded attempt's transitions. `None`: not trained on, or not known.
        late: rewards that came after its iteration had taken it.
        limit: longest text shown. `None`: everything.
    """
    tree = Tree(_rollout_line(rollout, records))
    for record in records:
        succeeded = record.attempt.state is AttemptState.SUCCEEDED
        alone = succeeded and len(records) == 1
        branch = tree if alone else tree.add(_attempt_line(record.attempt))
        _add_attempt(branch, record, credit if succeeded else None, limit)
    for reward in late:
        told = f"reward {reward.name!r} {reward.value:+g} came after the rollout was taken: not trained"
        tree.add(Text(told, "yellow"))
    return tree


def fork_tree(
    parent: AttemptRecord,
    trunk: int,
    branches: Sequence[AttemptRecord],
    *,
    limit: int | None = SHORT,
) -> Tree:
    """Draw a trunk once, and below it what each of its branches did otherwise.

    Args:
        parent: the attempt that was forked.
        trunk: how many of its transitions the trunk has.
        branches: attempts that were answered from it.
        limit: longest text shown. `None`: everything.
    """
    tree = Tree(_rollout_line(parent.rollout, [parent]))
    _add_steps(tree, parent.transitions[:trunk], {}, limit)
    for number, record in enumerate(branches, 1):
        line = Text(f"branch {number} · ", "bold")
        branch = tree.add(line.append_text(_rollout_line(record.rollout, [record])))
        replayed = [
            place
            for place, one in enumerate(record.transitions)
            if one.call is not None and one.call.replay_of is not None and one.token_bytes
        ]
        new = [
            one
            for one in record.transitions[replayed[-1] + 1 if replayed else 0 :]
            if one.asked_by not in {record.transitions[place].step_id for place in replayed}
        ]
        _add_steps(branch, new, {}, limit)
        _add_remarks(branch, record, limit)
    return tree


def short(text: str, limit: int | None = SHORT) -> str:
    """`text` on one line, cut to `limit` characters."""
    line = " ".join(text.split())
    return line if limit is None or len(line) <= limit else f"{line[: limit - 1]}…"


def seconds_between(start: datetime, end: datetime | None) -> str:
    """A duration for people; `still running` where there is no end."""
    return f"{(end - start).total_seconds():.1f} s" if end is not None else "still running"


def _rollout_line(rollout: Rollout, records: Sequence[AttemptRecord]) -> Text:
    spec = rollout.spec
    line = Text()
    line.append(f"{spec.mode.value} · iteration {spec.iteration} · task {spec.task_id}", "bold")
    line.append(f" #{spec.member}" + (f" ({spec.variant})" if spec.variant else ""), "bold")
    line.append(" · ")
    line.append(rollout.state.value, _STATE_STYLE[rollout.state])
    if rollout.reward is not None:
        line.append(f" · reward {rollout.reward:.3f}", "bold")
    if rollout.state is RolloutState.SUCCEEDED and not rollout.complete:
        line.append(" · awaits rewards", "yellow")
    if rollout.attempts != 1:
        line.append(f" · {rollout.attempts} attempts")
    if records:
        last = records[-1].attempt
        line.append(f" · {seconds_between(last.started_at, last.ended_at)}")
    line.append(f" · {rollout.id}", "dim")
    return line


def _attempt_line(attempt: Attempt) -> Text:
    line = Text(f"attempt {attempt.number} · ")
    line.append(attempt.state.value, _STATE_STYLE[attempt.state])
    line.append(f" · {seconds_between(attempt.started_at, attempt.ended_at)}")
    line.append(f" · {attempt.worker} · {attempt.id}", "dim")
    return line


def _add_attempt(
    branch: Tree, record: AttemptRecord, credit: Sequence[float] | None, limit: int | None
) -> None:
    credit_of = dict(
        zip((one.step_id for one in record.transitions), credit or (), strict=credit is not None)
    )
    _add_steps(branch, record.transitions, credit_of, limit)
    _add_remarks(branch, record, limit)


def _add_remarks(branch: Tree, record: AttemptRecord, limit: int | None) -> None:
    for reward in unjoined_rewards(record.events):
        branch.add(
            Text(
                f"reward {reward.value:+g} for step {reward.step_id!r}, which is not known",
                "yellow",
            )
        )
    for event in record.events:
        if isinstance(event, LogEvent):
            branch.add(Text(f"{event.level}: {short(event.message, limit)}", "dim"))
        elif isinstance(event, CallEvent) and event.diverged is not None and not event.choices:
            branch.add(Text(f"diverged: {event.diverged.difference}", "yellow"))
    failure = record.attempt.failure
    if failure is not None:
        branch.add(Text(f"{failure.kind.value}: {failure.message.strip()}", "red"))


def _add_steps(
    branch: Tree,
    transitions: Sequence[Transition],
    credit_of: Mapping[StepId, float],
    limit: int | None,
) -> None:
    """Add each step below its parent."""
    nodes = [branch]
    for depth, one in outline(transitions):
        del nodes[depth + 1 :]
        nodes.append(nodes[depth].add(_step_text(one, credit_of.get(one.step_id), limit)))


def _step_text(one: Transition, credit: float | None, limit: int | None) -> Text:
    if one.kind is StepKind.LLM:
        return _call_text(one, credit, limit)
    text = Text()
    text.append(f"{one.kind.value} ", "magenta")
    text.append(one.name, "bold")
    if one.inputs is not None:
        text.append(f" {short(as_text(one.inputs), limit)}")
    if one.output is not None:
        text.append(" → ", "dim")
        text.append(short(as_text(one.output), limit))
    if one.reward is not None:
        text.append(f"\nreward {one.reward:+.3f}", "dim")
    if one.error is not None:
        text.append(f"\n{short(one.error, limit)}", "red")
    elif one.interrupted:
        text.append("\ninterrupted", "yellow")
    return text


def _call_text(one: Transition, credit: float | None, limit: int | None) -> Text:
    text = Text()
    text.append("call ", "cyan")
    text.append(one.agent_path or one.name, "bold")
    for part in answer_parts(one):
        text.append(f" {short(part, limit)}")
    text.append(f"\n{_numbers(one, credit)}", "dim")
    if one.call is not None and one.call.rewrites:
        names = ", ".join(rewrite.name for rewrite in one.call.rewrites)
        text.append(f"\nrewritten: {names}", "dim")
    if one.call is not None and one.call.diverged is not None:
        text.append(f"\ndiverged: {one.call.diverged.difference}", "yellow")
    if one.call is not None and one.call.replay_of is not None and one.token_bytes:
        text.append("\nreplayed", "dim")
    if one.untrainable is not None:
        text.append(f"\nnot trained: {short(one.untrainable, limit)}", "yellow")
    if one.choice is not None and one.choice.wrong_format is not None:
        wrong = one.choice.wrong_format
        label = "format" if wrong.startswith(UNJUDGED) else "wrong format:"
        text.append(f"\n{label} {short(wrong, limit)}", "yellow")
    if one.error is not None and one.error not in (one.untrainable or ""):
        text.append(f"\n{short(one.error, limit)}", "red")
    return text


def answer_parts(one: Transition) -> list[str]:
    """The answer's text and tool calls, as texts; none where there is no answer.

    Of a call that no gateway recorded, what the agent's framework or client said that the model answered.
    """
    message: Mapping[str, Any] = {}
    if one.choice is not None:
        message = json.loads(one.choice.message or b"{}")
    elif one.call is None and isinstance(one.output, Mapping):
        message = cast("Mapping[str, Any]", one.output)
    parts = [as_text(message["content"])] if message.get("content") else []
    for asked in message.get("tool_calls") or ():
        function = asked.get("function") or {}
        parts.append(f"→ {function.get('name')}({function.get('arguments', '')})")
    return parts


def _numbers(one: Transition, credit: float | None) -> str:
    call = one.call
    if call is None:
        return "no answer" if one.output is None else "recorded without tokens"
    parts = [f"prompt {call.prompt_tokens}", f"sampled {call.completion_tokens}"]
    parts.append(f"version {call.version_end}")
    if len(one.logprobs):
        parts.append(f"mean log-prob {float(one.logprobs.mean()):.3f}")
    if one.reward is not None:
        parts.append(f"reward {one.reward:+.3f}")
    if credit is not None and one.untrainable is None:
        parts.append(f"credit {credit:+.3f}")
    return " · ".join(parts)


def as_text(value: Any) -> str:
    """A value for people: a text as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
