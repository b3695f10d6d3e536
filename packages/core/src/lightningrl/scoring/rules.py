"""The shipped rules: plain functions of one trace, pure.

A rule is `(trace, **args) -> values`, one per transition: a number, or `None` where it has nothing to say (which
is not 0). Values are about 1 where what the rule names is the case; the recipe's weight gives sign and size.
A value on a tool step counts for the model call that asked for the tool.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, cast

from lightningrl.experience.transition import Trace, Transition
from lightningrl.schema import TOOL_PARSER_ERROR, StepKind
from lightningrl.user_input.arguments import AboveZero, Positive

Values = list[float | None]
"""Aligned with a trace's transitions."""

Rule = Callable[..., Values]
"""`(trace, **args) -> values`."""


def tool_error(trace: Trace) -> Values:
    """1 for a tool step that ended in an error or never ended, 0 for one that ended well."""
    return [
        float(one.error is not None or one.interrupted) if one.kind is StepKind.TOOL else None
        for one in trace.transitions
    ]


def repeated_call(trace: Trace) -> Values:
    """1 for an answer that asks for a tool with arguments that the same agent had asked for before.

    0 for other answers that ask for a tool; the order of keys in the arguments doesn't matter.
    """
    seen: set[tuple[str | None, str, str]] = set()
    values: Values = []
    for one in trace.transitions:
        asked = [(one.agent_path, name, _canonical(arguments)) for name, arguments in _asked(one)]
        values.append(float(any(call in seen for call in asked)) if asked else None)
        seen.update(asked)
    return values


def invalid_arguments(trace: Trace) -> Values:
    """1 for an answer that asks for a tool by what is no JSON object, or that no tool parser could read.

    0 for other answers that ask for a tool. Custom tools take any text.
    """
    values: Values = []
    for one in trace.transitions:
        if one.call is not None and (one.call.error or "").startswith(TOOL_PARSER_ERROR):
            values.append(1.0)
        else:
            valid = all(map(_is_object, _objects(one)))
            values.append(float(not valid) if _asked(one) else None)
    return values


def format(trace: Trace, *, pattern: str) -> Values:  # noqa: A001 - the recipe's word for it
    """1 for an answer in whose text `pattern`, a regular expression, is found; 0 for other texts.

    Answers without a text, which only ask for tools, say nothing.
    """
    wanted = re.compile(pattern, re.DOTALL)
    texts = [_text(one) for one in trace.transitions]
    return [float(wanted.search(text) is not None) if text else None for text in texts]


def length(trace: Trace, *, limit: Positive) -> Values:
    """How far an answer is longer than `limit` tokens, as a share of it: 0 up to it, 1 at twice it."""
    return [
        max(0.0, len(one.token_ids) / limit - 1.0) if len(one.token_ids) else None
        for one in trace.transitions
    ]


def latency(trace: Trace, *, limit_seconds: AboveZero) -> Values:
    """How far an answer took longer than `limit_seconds`, as a share; weight syncs don't count.

    The time is the engine's, so it tells of the policy only where engines are equally busy.
    """
    return [
        None
        if one.call is None
        else max(0.0, (one.call.latency_ms - one.call.held_ms) / 1e3 / limit_seconds - 1.0)
        for one in trace.transitions
    ]


RULES: dict[str, Rule] = {
    one.__name__: one
    for one in (tool_error, repeated_call, invalid_arguments, format, length, latency)
}
"""By the name that a recipe gives them."""


def answer_text(one: Transition) -> str:
    """What a person would read of an answer: its text, then the tools that it asks for.

    Of a call that no gateway recorded, what the agent's framework said that the model answered.
    """
    message = _message(one)
    if one.call is None and isinstance(one.output, Mapping):
        message = cast("Mapping[str, Any]", one.output)
    asked = [f"{name}({arguments})" for name, arguments in _asked_in(message)]
    return "\n".join(part for part in (content_text(message.get("content")), *asked) if part)


def _message(one: Transition) -> dict[str, Any]:
    choice = one.choice
    return json.loads(choice.message or b"{}") if choice is not None else {}


def _text(one: Transition) -> str:
    return content_text(_message(one).get("content"))


def content_text(content: Any) -> str:
    """The text in a chat message's content, which is a text or a list of parts."""
    if isinstance(content, list):
        return "".join(part.get("text") or "" for part in content if isinstance(part, dict))
    return content or ""


def _asked(one: Transition) -> list[tuple[str, str]]:
    """Names and arguments of the tools that an answer asks for; of a custom tool its text."""
    return _asked_in(_message(one))


def _asked_in(message: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        (str(asked.get("name")), asked.get("arguments") or asked.get("input") or "")
        for call in message.get("tool_calls") or ()
        for asked in (call.get("function") or call.get("custom") or {},)
    ]


def _objects(one: Transition) -> list[str]:
    """Arguments of the tools that are called with a JSON object; custom ones take any text."""
    functions = [call.get("function") for call in _message(one).get("tool_calls") or ()]
    return [asked.get("arguments") or "" for asked in functions if asked]


def _is_object(arguments: str) -> bool:
    try:
        return isinstance(json.loads(arguments or "{}"), dict)
    except (ValueError, RecursionError):
        return False


def _canonical(arguments: str) -> str:
    try:
        return json.dumps(json.loads(arguments), sort_keys=True)
    except (ValueError, RecursionError):
        return arguments
