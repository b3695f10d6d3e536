"""OpenAI's Responses items and chat messages: the same conversation in two forms.

Invariant: an answer's items, sent back, become the very message that they were made from, so that the
next prompt continues the tokens that the policy sampled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

from lightningrl.conversation.engine_fields import engine_fields
from lightningrl.conversation.malformed import (
    Malformed,
    Object,
    missing,
    objects,
    text_field,
    unknown_value,
    wrong_type,
)
from lightningrl.conversation.order import results_first, without_empty_end
from lightningrl.conversation.tools import responses as own_tools
from lightningrl.conversation.tools.responses import Form

Item = dict[str, Any]
Message = dict[str, Any]

ROLES = ("user", "assistant", "system", "developer")
ITEM_TYPES = (
    "message",
    "function_call",
    "function_call_output",
    "reasoning",
    "item_reference",
    *own_tools.CALLS,
    *own_tools.OUTPUTS,
    "additional_tools",
)

_RESPONSE_PREFIX = "resp_"
_MESSAGE_PREFIX = "msg_"


def response_id(step_id: str) -> str:
    """The id of the response that answers a step's call; some clients look for its prefix."""
    return _RESPONSE_PREFIX + step_id


def message_id(step_id: str) -> str:
    """The id of the message that answers a step's call."""
    return _MESSAGE_PREFIX + step_id


def step_of_response(response: str) -> str:
    """The step whose call a response or message answered; other ids come back as they are."""
    return response.removeprefix(_RESPONSE_PREFIX).removeprefix(_MESSAGE_PREFIX)


# -- from an answer to items -------------------------------------------------------------------


def output_items(
    message: Object,
    step_id: str,
    *,
    status: str = "completed",
    logprobs: Any = (),
    forms: Mapping[str, Form] | None = None,
) -> list[Item]:
    """The items of an answer: its reasoning, its text, its tool calls, each where there is one.

    Args:
        message: The assistant's message as chat completions have it.
        step_id: Of the call; item ids follow from it, so that they can be looked up later.
        status: Of the last item; those before it are complete.
        logprobs: The entries of its text, in chat completions' form.
        forms: Of the tools that are no plain functions. `None`: calls stay function calls.
    """
    items: list[Item] = []
    reasoning = reasoning_of(message)
    if reasoning:
        content = [{"type": "reasoning_text", "text": reasoning}]
        items.append(
            {"id": f"rs_{step_id}", "type": "reasoning", "summary": [], "content": content}
        )
    calls = message.get("tool_calls") or ()
    text, refusal = message.get("content"), message.get("refusal")
    if text or refusal or not calls:
        items.append(_message_item(text, refusal, step_id, logprobs))
    items += [_call_item(call, f"fc_{step_id}_{place}") for place, call in enumerate(calls)]
    items[-1]["status"] = status
    if forms:
        items = [_own(item, forms) for item in items]
    return items


def _own(item: Item, forms: Mapping[str, Form]) -> Item:
    form = forms.get(item["name"]) if item["type"] == "function_call" else None
    return item if form is None else own_tools.own_item(form, item)


def reasoning_of(message: Object) -> str:
    """What the model thought before it answered; empty where the engine reports none."""
    found = message.get("reasoning") or message.get("reasoning_content")
    return found if isinstance(found, str) else ""


def _message_item(text: Any, refusal: Any, step_id: str, logprobs: Any) -> Item:
    parts: list[Item] = []
    if text or not refusal:
        part = {"type": "output_text", "text": text or "", "annotations": [], "logprobs": logprobs}
        parts.append(part)
    if refusal:
        parts.append({"type": "refusal", "refusal": refusal})
    return {
        "id": message_id(step_id),
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": parts,
    }


def _call_item(call: Object, item_id: str) -> Item:
    function: Object = call.get("function") or {}
    return {
        "id": item_id,
        "type": "function_call",
        "call_id": call.get("id") or item_id,
        "name": function.get("name") or "",
        "arguments": function.get("arguments") or "",
        "status": "completed",
    }


# -- from items to messages --------------------------------------------------------------------


def input_items(given: Any, resolve: Callable[[str, str], Object]) -> list[Item]:
    """A request's `input` as items, references replaced by what they refer to.

    Args:
        given: A string, or the list of items.
        resolve: From an item's id, and the path of the reference, to the item.

    Raises:
        Malformed: it is neither, or `resolve` knows no such item.
    """
    if given is None:
        raise missing("input")
    if isinstance(given, str):
        return [{"type": "message", "role": "user", "content": given}]
    items: list[Item] = []
    for place, item in enumerate(objects(given, "input")):
        where = f"input[{place}]"
        if item_type(item) == "item_reference":
            items.append(dict(resolve(text_field(item, "id", where), f"{where}.id")))
        else:
            items.append(dict(item))
    return items


def item_type(item: Object) -> Any:
    """The item's type; the short form of a message, and of a reference, does not name it."""
    if item.get("type") is not None:
        return item["type"]
    return (
        "message" if "role" in item else "item_reference" if set(item) <= {"id", "type"} else None
    )


def chat_messages(items: Iterable[Object]) -> list[Message]:
    """The conversation as chat messages.

    What the assistant did in one turn (reasoning, text, calls, in that order) becomes one message. Results of
    its calls follow it, in the calls' order; what stood between them comes after.

    Raises:
        Malformed: an item is of an unknown type or lacks what its type needs.
    """
    messages: list[Message] = []
    turn: Message | None = None
    """The assistant's message that is still open."""
    for place, item in enumerate(items):
        where = f"input[{place}]"
        if item_type(item) == "additional_tools":
            continue  # it declares tools, and says nothing
        piece = _piece(item, where)
        if piece["role"] != "assistant":
            turn = None
            messages.append(piece)
        elif turn is not None and _continues(turn, piece):
            _join(turn, piece)
        else:
            turn = piece
            messages.append(turn)
    return results_first(messages)


def _piece(item: Object, where: str) -> Message:
    kind = item_type(item)
    if kind == "message":
        return _message(item, where)
    if kind == "function_call" or kind in own_tools.CALLS:
        name, arguments = own_tools.call_of(item, where)
        call = {"id": text_field(item, "call_id", where), "type": "function"}
        function = {"name": name, "arguments": arguments}
        return {
            "role": "assistant",
            "content": None,
            "tool_calls": [{**call, "function": function}],
        }
    if kind == "function_call_output" or kind in own_tools.OUTPUTS:
        call_id, output = own_tools.output_of(item, where)
        content = _content(output, f"{where}.output")
        return {"role": "tool", "tool_call_id": call_id, "content": content}
    if kind == "reasoning":
        return {"role": "assistant", "content": None, "reasoning": _thought(item, where)}
    raise unknown_value(kind, ITEM_TYPES, f"{where}.type")


def _message(item: Object, where: str) -> Message:
    role = text_field(item, "role", where)
    if role not in ROLES:
        raise unknown_value(role, ROLES, f"{where}.role")
    if "content" not in item:
        raise missing(f"{where}.content")
    return {"role": role, "content": _content(item["content"], f"{where}.content")}


def _continues(turn: Message, piece: Message) -> bool:
    """Whether `piece` is of the same answer as `turn`: reasoning, then text, then calls."""
    if "reasoning" in piece:
        return set(turn) == {"role", "content", "reasoning"} and turn["content"] is None
    if "tool_calls" in piece:
        return True
    return turn["content"] is None and "tool_calls" not in turn


def _join(turn: Message, piece: Message) -> None:
    if "tool_calls" in piece:
        turn.setdefault("tool_calls", []).extend(piece["tool_calls"])
    elif "reasoning" in piece:
        turn["reasoning"] += piece["reasoning"]
    else:
        turn["content"] = piece["content"]


def _thought(item: Object, where: str) -> str:
    """The text of a reasoning item: its content, else its summary; it may have neither."""
    for name in ("content", "summary"):
        parts = objects(item.get(name) or [], f"{where}.{name}")
        if parts:
            return "".join(
                text_field(part, "text", f"{where}.{name}[{place}]")
                for place, part in enumerate(parts)
            )
    return ""


def _content(given: Any, where: str) -> Any:
    """The content of a chat message: text where it is one text alone, else its parts."""
    if isinstance(given, str):
        return given
    if not isinstance(given, list):
        raise wrong_type(given, "a string or an array of objects", where)
    parts = [_part(part, f"{where}[{place}]") for place, part in enumerate(objects(given, where))]
    if len(parts) == 1 and parts[0]["type"] == "text":
        return parts[0]["text"]
    return parts


_PART_TYPES = ("input_text", "output_text", "refusal", "input_image", "input_file", "input_audio")


def _part(part: Object, where: str) -> Message:
    match part.get("type"):
        case "input_text" | "output_text" | "text":
            return {"type": "text", "text": text_field(part, "text", where)}
        case "refusal":
            return {"type": "refusal", "refusal": text_field(part, "refusal", where)}
        case "input_image":
            return {"type": "image_url", "image_url": _image(part, where)}
        case "input_file":
            return {"type": "file", "file": _file(part, where)}
        case "input_audio":
            return {"type": "input_audio", "input_audio": part.get("input_audio")}
        case other:
            raise unknown_value(other, _PART_TYPES, f"{where}.type")


def _file(part: Object, where: str) -> Message:
    if part.get("file_url") is not None:
        raise _elsewhere(f"{where}.file_url", "files are not fetched here; send it as 'file_data'")
    return {one: part[one] for one in ("file_data", "filename", "file_id") if part.get(one)}


def _elsewhere(param: str, what: str) -> Malformed:
    return Malformed(f"'{param}': {what}.", param=param, code="unsupported_parameter")


def _image(part: Object, where: str) -> Message:
    if part.get("file_id") is not None:
        what = "files can't be uploaded here; send the image as 'image_url'"
        raise _elsewhere(f"{where}.file_id", what)
    detail = part.get("detail")
    image = {"url": text_field(part, "image_url", where)}
    return image if detail is None else {**image, "detail": detail}


# -- what a response follows on ----------------------------------------------------------------


class Turn:
    """One recorded response: what it added to the conversation that it continued."""

    def __init__(self, earlier: Turn | None, items: Sequence[Object]) -> None:
        self._earlier = earlier
        self._items = items

    def conversation(self) -> list[Object]:
        """All items up to and including the response's own output."""
        turns: list[Turn] = []
        turn: Turn | None = self
        while turn is not None:
            turns.append(turn)
            turn = turn._earlier
        return [item for turn in reversed(turns) for item in turn._items]


class Responses:
    """The responses that one attempt was given, by id; those with `store: false` can't be referred to.

    A turn knows the turn that it continues, not its id, so that a step's second call does not change
    what an earlier response followed on.
    """

    def __init__(self) -> None:
        self._turns: dict[str, Turn] = {}
        self._items: dict[str, Object] = {}

    def add(self, step_id: str, request: Object, message: Object) -> None:
        """Take up the next response in order of arrival; `message` is the answer's chat message."""
        given = input_items(request.get("input"), self.item)
        output = output_items(message, step_id)
        previous = request.get("previous_response_id")
        turn = Turn(self.turn(previous) if previous is not None else None, [*given, *output])
        if request.get("store") is False:
            return
        self._turns[response_id(step_id)] = turn
        self._items |= {item["id"]: item for item in output}

    def turn(self, response: Any) -> Turn:
        """One response.

        Raises:
            Malformed: the attempt was given no such response.
        """
        if response not in self._turns:
            raise Malformed(
                f"Previous response with id '{response}' not found.",
                param="previous_response_id",
                code="previous_response_not_found",
            )
        return self._turns[response]

    def item(self, item_id: str, param: str) -> Object:
        """One item of a response's output.

        Raises:
            Malformed: the attempt was given no such item.
        """
        if item_id not in self._items:
            raise Malformed(
                f"Item with id '{item_id}' not found. Items of a response with `store` set to false "
                "are not kept.",
                param=param,
                code="item_not_found",
                status=404,
            )
        return self._items[item_id]


def conversation(request: Mapping[str, Any], earlier: Responses) -> list[Message]:
    """The whole conversation that a request asks to continue, instructions first.

    Raises:
        Malformed: the request refers to what is not there, or an item is malformed.
    """
    instructions = request.get("instructions")
    messages = [{"role": "system", "content": instructions}] if instructions else []
    return without_empty_end(messages + chat_messages(_items(request, earlier)))


def _items(request: Mapping[str, Any], earlier: Responses) -> list[Object]:
    """The items of the whole conversation."""
    previous = request.get("previous_response_id")
    given = input_items(request.get("input"), earlier.item)
    before = earlier.turn(previous).conversation() if previous is not None else []
    return [*before, *given]


# -- a request as a chat request ---------------------------------------------------------------

LOGPROBS = "message.output_text.logprobs"
"""What a request includes that wants the log-probs of the answer's text."""
_CHOICES = ("none", "auto", "required")


def chat_request(request: Mapping[str, Any], earlier: Responses) -> dict[str, Any]:
    """The request as a chat completion; fields that say nothing are not in it.

    Args:
        request: its fields are of the right types.
        earlier: what it may refer to.

    Raises:
        Malformed: it refers to what is not there, or an item, a tool or a choice is malformed.
    """
    reasoning, text = request.get("reasoning") or {}, request.get("text") or {}
    top_logprobs = request.get("top_logprobs") or None
    tools = declared_tools(request, earlier).tools
    choice, tools = _tool_choice(request.get("tool_choice"), tools)
    fields: dict[str, Any] = {
        **engine_fields(request),
        "model": request.get("model"),
        "messages": conversation(request, earlier),
        "tools": tools or None,
        "tool_choice": choice,
        "parallel_tool_calls": request.get("parallel_tool_calls"),
        "response_format": _response_format(text.get("format")),
        "reasoning_effort": reasoning.get("effort"),
        "temperature": request.get("temperature"),
        "top_p": request.get("top_p"),
        "max_completion_tokens": request.get("max_output_tokens"),
        "top_logprobs": top_logprobs,
        "logprobs": LOGPROBS in (request.get("include") or ()) or bool(top_logprobs) or None,
    }
    return {name: value for name, value in fields.items() if value is not None}


def declared_tools(request: Mapping[str, Any], earlier: Responses) -> own_tools.Declared:
    """The tools that the conversation declares, and how calls of them come back.

    Raises:
        Malformed: the request refers to what is not there, or a declaration is malformed.
    """
    return own_tools.declared(request.get("tools"), _items(request, earlier))


def _tool_choice(
    choice: str | dict[str, Any] | None, tools: list[dict[str, Any]]
) -> tuple[Any, list[dict[str, Any]]]:
    """The choice as chat completions have it, and the tools that are left to choose from."""
    if choice is None or (isinstance(choice, str) and choice in _CHOICES):
        return choice, tools
    if isinstance(choice, str):
        raise unknown_value(choice, _CHOICES, "tool_choice")
    return own_tools.chosen(choice, tools)


def _response_format(given: Object | None) -> dict[str, Any] | None:
    match given.get("type") if given is not None else "text":
        case "text":
            return None
        case "json_object":
            return {"type": "json_object"}
        case "json_schema" if given is not None:
            names = ("name", "schema", "strict", "description")
            schema = {name: given[name] for name in names if given.get(name) is not None}
            return {"type": "json_schema", "json_schema": schema}
        case other:
            raise unknown_value(other, ("text", "json_object", "json_schema"), "text.format.type")


def is_continuation(request: Mapping[str, Any]) -> bool:
    """Whether the request follows an answer: by reference, or by holding one."""
    if request.get("previous_response_id") is not None:
        return True
    given = request.get("input")
    items = cast("list[Any]", given) if isinstance(given, list) else []
    answered = ("function_call", "reasoning", "item_reference", *own_tools.CALLS)
    return any(
        isinstance(one, dict)
        and (item_type(cast("Object", one)) in answered or one.get("role") == "assistant")
        for one in items
    )
