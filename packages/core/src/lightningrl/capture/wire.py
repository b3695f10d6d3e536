"""What model clients send and receive, as `llm` steps keep it where no gateway does. Pure.

Invariant: a streamed answer is kept as the same answer would be that came at once. What of a dialect is not
known here (a field, a kind of delta) is kept or left out, and never an error of a known one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

from lightningrl.capture.jsonable import tool_arguments
from lightningrl.conversation.recorded import MESSAGES
from lightningrl.schema import Dialect

ROUTES = {
    "/chat/completions": Dialect.CHAT,
    "/completions": Dialect.COMPLETIONS,
    "/messages": Dialect.ANTHROPIC,
    "/responses": Dialect.RESPONSES,
}
"""Where a model is asked -> in which dialect."""

Object = Mapping[str, Any]

HIDDEN = "[not recorded]"
"""What stands for credentials."""
_SERVERS = frozenset({"tools", "mcp_servers"})
"""Fields of a request that name remote MCP servers: of Responses, and of Anthropic."""
_CREDENTIALS = frozenset({"authorization", "authorization_token", "headers"})

_ONCE = frozenset({"id", "index", "name", "role", "type"})
"""Fields of a delta that name what it adds to: some services repeat them."""
_LAST_EVENTS = frozenset({"response.completed", "response.failed", "response.incomplete"})


def asked(dialect: Dialect, body: Object) -> dict[str, Any]:
    """A request: its `messages`, whatever the dialect calls them, and what else it says, but no credentials."""
    body = {
        key: [_without_credentials(one) for one in value]
        if key in _SERVERS and isinstance(value, list)
        else value
        for key, value in body.items()
    }
    if dialect is not Dialect.RESPONSES:
        return dict(body)
    given = body.get("input")
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    return {**{key: value for key, value in body.items() if key != "input"}, MESSAGES: items or []}


def _without_credentials(server: Any) -> Any:
    """A tool as it is; a remote MCP server without what lets a vendor call it."""
    if not isinstance(server, Mapping):
        return server
    told = cast("Mapping[str, Any]", server)
    if (
        "server_url" not in told
        and "connector_id" not in told
        and "authorization_token" not in told
    ):
        return told
    return {key: HIDDEN if key in _CREDENTIALS and told[key] else told[key] for key in told}


def answered(dialect: Dialect, body: Object) -> Any:
    """The answer in a response: a message, of a completion a text, of Responses the output items.

    Of several choices it is a list.
    """
    match dialect:
        case Dialect.CHAT:
            return _one_or_all([choice["message"] for choice in body["choices"]])
        case Dialect.COMPLETIONS:
            return _one_or_all([choice["text"] for choice in body["choices"]])
        case Dialect.ANTHROPIC:
            return {"role": body["role"], "content": body["content"]}
        case Dialect.RESPONSES:
            return body["output"]


def answered_in_parts(dialect: Dialect, events: Iterable[Object]) -> Any:
    """The same of a stream's events; of one that was left early what had come by then."""
    match dialect:
        case Dialect.CHAT | Dialect.COMPLETIONS:
            return _one_or_all(_choices(events))
        case Dialect.ANTHROPIC:
            return {"role": "assistant", "content": _blocks(events)}
        case Dialect.RESPONSES:
            whole = [event["response"] for event in events if event.get("type") in _LAST_EVENTS]
            return whole[-1]["output"] if whole else None


def _one_or_all(choices: list[Any]) -> Any:
    return choices[0] if len(choices) == 1 else choices


def _choices(events: Iterable[Object]) -> list[Any]:
    """The messages, or of completions the texts, by their index."""
    found: dict[int, dict[str, Any]] = {}
    for event in events:
        for choice in event.get("choices") or ():
            into = found.setdefault(choice.get("index", 0), {})
            delta = choice.get("delta")
            _add(into, {"text": choice.get("text")} if delta is None else delta)
    whole = [found[index] for index in sorted(found)]
    for message in whole:
        for call in message.get("tool_calls") or ():
            call.pop("index", None)
    return [one["text"] if set(one) == {"text"} else one for one in whole]


def _add(into: dict[str, Any], delta: Object) -> None:
    """Add a delta: texts become longer, maps grow, elements of lists are found by their `index`."""
    for key, value in delta.items():
        before = into.get(key)
        if isinstance(value, list):
            elements = into[key] = before if isinstance(before, list) else []
            for one in cast("list[Any]", value):
                _add_element(elements, one)
        elif isinstance(value, Mapping) and isinstance(before, dict):
            _add(cast("dict[str, Any]", before), cast("Object", value))
        elif isinstance(value, str) and isinstance(before, str) and key not in _ONCE:
            into[key] = before + value
        elif before in (None, "") or (value is not None and key not in _ONCE):
            into[key] = dict(cast("Object", value)) if isinstance(value, Mapping) else value


def _index(element: Any) -> Any:
    return element.get("index") if isinstance(element, Mapping) else None


def _add_element(elements: list[Any], one: Any) -> None:
    index = one.get("index") if isinstance(one, Mapping) else None
    known = next((two for two in elements if index is not None and _index(two) == index), None)
    if known is not None:
        _add(known, cast("Object", one))
    elif isinstance(one, Mapping):
        elements.append({})
        _add(elements[-1], cast("Object", one))
    else:
        elements.append(one)


def _blocks(events: Iterable[Object]) -> list[dict[str, Any]]:
    """The content blocks of a message of Anthropic's."""
    blocks: dict[int, dict[str, Any]] = {}
    inputs: dict[int, str] = {}
    for event in events:
        match event.get("type"):
            case "content_block_start":
                blocks[event["index"]] = dict(event["content_block"])
            case "content_block_delta":
                delta, index = event["delta"], event["index"]
                if delta["type"] == "input_json_delta":
                    inputs[index] = inputs.get(index, "") + delta["partial_json"]
                elif delta["type"] == "citations_delta":
                    blocks[index]["citations"] = [
                        *(blocks[index].get("citations") or ()),
                        delta["citation"],
                    ]
                else:
                    _add(blocks[index], {key: delta[key] for key in delta if key != "type"})
            case _:
                pass
    for index, text in inputs.items():
        if text:
            blocks[index]["input"] = tool_arguments(text)
    return [blocks[index] for index in sorted(blocks)]
