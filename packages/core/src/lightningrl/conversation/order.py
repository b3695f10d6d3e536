"""The order of messages that chat completions ask for: the results of an answer's calls follow it at once."""

from __future__ import annotations

from typing import Any

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
