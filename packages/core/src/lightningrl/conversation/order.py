"""The order of messages that chat completions ask for: the results of an answer's calls follow it at once; the end."""

from __future__ import annotations

from typing import Any, cast

Message = dict[str, Any]


def results_first(messages: list[Message]) -> list[Message]:
    """The messages; between an answer and the next one, results come first, in the order of the answer's calls.

    Templates without call ids show results in the order given. What stood between the results keeps its order.
    """
    ordered: list[Message] = []
    after: list[Message] = []
    """What follows the last answer."""
    places: dict[Any, int] = {}
    """Call id -> its place in the last answer."""
    for message in messages:
        if message["role"] == "assistant":
            ordered += _ordered(after, places)
            after = []
            places = {call["id"]: place for place, call in enumerate(message.get("tool_calls", ()))}
            ordered.append(message)
        else:
            after.append(message)
    return ordered + _ordered(after, places)


def _ordered(after: list[Message], places: dict[Any, int]) -> list[Message]:
    if not places:
        return after
    results = [one for one in after if one["role"] == "tool"]
    results.sort(key=lambda one: places.get(one["tool_call_id"], len(places)))
    return results + [one for one in after if one["role"] != "tool"]


def without_empty_end(messages: list[Message]) -> list[Message]:
    """The messages without an answer at their end that says nothing, as a harness leaves it that broke one off."""
    return messages[:-1] if len(messages) > 1 and is_empty_answer(messages[-1]) else messages


_SAYING = ("content", "refusal", "tool_calls", "function_call", "reasoning", "reasoning_content")


def is_empty_answer(message: Any) -> bool:
    """Whether it is the assistant's, and has neither text nor calls nor anything else."""
    if not isinstance(message, dict):
        return False
    said = cast("Message", message)
    return (
        said.get("role") == "assistant"
        and said.keys() <= {"role", *_SAYING}
        and all(said.get(name) in (None, "", []) for name in _SAYING)
    )
