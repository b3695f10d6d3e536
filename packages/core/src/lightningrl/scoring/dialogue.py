"""A whole rollout as a person would read it: what a judge of rollouts is shown. Pure.

Invariant: each message of a user stands once, before the answer to it; a system's message is not shown.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from lightningrl.experience.transition import Transition
from lightningrl.schema import StepKind
from lightningrl.scoring.rules import answer_text, content_text


def shown_rollout(
    task: Mapping[str, Any],
    steps: Sequence[Transition],
    asked: Mapping[str, Sequence[Mapping[str, Any]]],
    output: Any,
) -> str:
    """The task, what was said and done in order, and what the agent returned.

    Args:
        task: of the rollout.
        steps: of its attempt, in order of their start.
        asked: step id -> the chat messages that a model was asked with. Of a step that is not there nothing is known.
        output: the agent's.
    """
    lines = ["Task:", _json(task), "", "What happened:"]
    seen: set[tuple[int, str]] = set()
    for one in steps:
        if one.kind is StepKind.LLM:
            lines += _new(asked.get(one.step_id, ()), seen)
            lines.append(f"{one.agent or 'agent'}: {one.error or answer_text(one)}")
        elif one.kind in {StepKind.TOOL, StepKind.RETRIEVAL}:
            lines.append(f"{one.name} gave: {one.error or _told(one.output)}")
    return "\n".join([*lines, "", "Output:", _told(output)])


def _new(messages: Sequence[Mapping[str, Any]], seen: set[tuple[int, str]]) -> Iterator[str]:
    for place, message in enumerate(messages):
        text = content_text(message.get("content"))
        if message.get("role") == "user" and (place, text) not in seen:
            seen.add((place, text))
            yield f"user: {text}"


def _told(value: Any) -> str:
    if isinstance(value, Mapping):  # a tool's message, as frameworks have it
        content = cast("Mapping[str, Any]", value).get("content")
        if isinstance(content, str):
            return content
    return value if isinstance(value, str) else _json(value)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
