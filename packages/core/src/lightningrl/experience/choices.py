"""Of several sampled answers (`n > 1`): the one that the agent went on with.

Invariant: never guessed. An answer counts as gone on with only where a later call of the same attempt shows it,
token by token or as a message; where none or several are shown, nobody knows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from lightningrl.conversation.tools.freeform import called
from lightningrl.schema import CallEvent, EventId


def pick_choices(calls: Sequence[CallEvent]) -> dict[EventId, int]:
    """Call -> index of its answer that the agent went on with, of the calls with several answers.

    Args:
        calls: the delivered calls of one attempt, in order of their start.
    """
    picked: dict[EventId, int] = {}
    for place, call in enumerate(calls):
        if len(call.choices) > 1:
            later = calls[place + 1 :]
            shown = _in_tokens(call, later) or _in_messages(call, later)
            if len(shown) == 1:
                picked[call.id] = shown.pop()
    return picked


def _in_tokens(call: CallEvent, later: Sequence[CallEvent]) -> set[int]:
    return {
        index
        for index, choice in enumerate(call.choices)
        if choice.token_ids
        and any(one.prompt_ids.startswith(call.prompt_ids + choice.token_ids) for one in later)
    }


def _in_messages(call: CallEvent, later: Sequence[CallEvent]) -> set[int]:
    answers = [_said(json.loads(choice.message or b"{}")) for choice in call.choices]
    known = {text for one in later for text in _assistant_messages(one)}
    return {index for index, text in enumerate(answers) if text in known}


def _assistant_messages(call: CallEvent) -> Iterator[str]:
    for message in json.loads(call.request or b"{}").get("messages") or ():
        if message.get("role") == "assistant":
            yield _said(message)


def _said(message: dict[str, Any]) -> str:
    """What makes an answer this answer, whatever else a client adds to it."""
    calls = message.get("tool_calls") or ()
    said = [(one.get("id"), *called(one)) if isinstance(one, dict) else one for one in calls]
    return json.dumps([message.get("content"), said], sort_keys=True)
