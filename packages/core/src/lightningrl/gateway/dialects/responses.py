"""OpenAI Responses: items in, items out, and conversations that go on by a response's id.

Invariants:
- The engine is asked for exactly the messages that `conversation.messages_of` reads from the record.
- The agent sees no token id, and log-probs only if it included them.
"""

from __future__ import annotations

from typing import Any

import msgspec

from lightningrl.conversation import Recorded, responses
from lightningrl.conversation.malformed import Malformed, Object, text_field, unknown_value
from lightningrl.gateway.asgi import Refusal, to_json
from lightningrl.gateway.dialects.base import Recall, Spoken, Written
from lightningrl.gateway.dialects.engine_reply import EngineReply
from lightningrl.gateway.dialects.engine_request import EngineRequest, engine_request
from lightningrl.gateway.dialects.reading import decode, decoded_fields, refusal_of
from lightningrl.gateway.dialects.responses_fields import RESPONSES_FIELDS
from lightningrl.gateway.dialects.responses_reply import response
from lightningrl.gateway.dialects.responses_stream import event_stream
from lightningrl.schema import Dialect, StepId

LOGPROBS = "message.output_text.logprobs"
_INCLUDABLE = (
    LOGPROBS,
    "reasoning.encrypted_content",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
)
_CHOICES = ("none", "auto", "required")


class _Format(msgspec.Struct, frozen=True):
    type: str
    name: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None
    description: str | None = None


class _Text(msgspec.Struct, frozen=True):
    format: _Format | None = None
    verbosity: str | None = None


class _Reasoning(msgspec.Struct, frozen=True):
    effort: str | None = None
    summary: str | None = None


class Wanted(msgspec.Struct, frozen=True):
    """The fields of a request that are read."""

    model: str
    input: str | list[dict[str, Any]]
    instructions: str | None = None
    previous_response_id: str | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: _Text | None = None
    reasoning: _Reasoning | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_output_tokens: int | None = None
    top_logprobs: int | None = None
    include: list[str] | None = None
    stream: bool | None = None
    store: bool | None = None
    metadata: dict[str, str] | None = None
    background: bool | None = None


_WANTED = msgspec.json.Decoder(Wanted)


class ResponsesRequest(msgspec.Struct, frozen=True):
    """A request with its conversation."""

    body: bytes
    fields: dict[str, Any]
    """As the agent sent them; the reply repeats some."""
    wanted: Wanted
    engine: EngineRequest

    @property
    def model(self) -> str:
        """The model name that the agent asked for."""
        return self.wanted.model

    def write(self, reply: EngineReply, step_id: StepId) -> Written:
        """The response; its id is the step's, prefixed as the service does."""
        logprobs = LOGPROBS in (self.wanted.include or ())
        whole = response(self.fields, reply, step_id, logprobs=logprobs)
        if self.wanted.stream:
            return Written(event_stream(whole), streams=True)
        return Written(to_json(whole), streams=False)


async def _read(body: bytes, recall: Recall) -> ResponsesRequest:
    fields = decoded_fields(body)
    RESPONSES_FIELDS.check(fields)
    wanted = decode(_WANTED, body)
    if wanted.background:
        raise Refusal(
            400,
            "unsupported_parameter",
            "'background': responses are answered at once; leave it away",
            param="background",
        )
    try:
        earlier = await recall() if _refers(wanted) else Recorded()
        messages = responses.conversation(fields, earlier.responses)
        engine = _engine_fields(wanted, messages)
    except Malformed as error:
        raise refusal_of(error) from error
    return ResponsesRequest(body, fields, wanted, engine_request(to_json(engine)))


def _refers(wanted: Wanted) -> bool:
    """Whether the request refers to an earlier response."""
    items = [] if isinstance(wanted.input, str) else wanted.input
    return wanted.previous_response_id is not None or any(
        responses.item_type(one) == "item_reference" for one in items
    )


def _engine_fields(wanted: Wanted, messages: list[responses.Message]) -> dict[str, Any]:
    """The request as a chat completion."""
    _check_include(wanted.include or [])
    logprobs = LOGPROBS in (wanted.include or ()) or bool(wanted.top_logprobs)
    fields: dict[str, Any] = {
        "model": wanted.model,
        "messages": messages,
        "tools": _tools(wanted.tools) if wanted.tools else None,
        "tool_choice": _tool_choice(wanted.tool_choice),
        "parallel_tool_calls": wanted.parallel_tool_calls,
        "response_format": _response_format(wanted.text.format if wanted.text else None),
        "reasoning_effort": wanted.reasoning.effort if wanted.reasoning else None,
        "temperature": wanted.temperature,
        "top_p": wanted.top_p,
        "max_completion_tokens": wanted.max_output_tokens,
        "top_logprobs": wanted.top_logprobs or None,
        "logprobs": logprobs or None,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _check_include(include: list[str]) -> None:
    for place, one in enumerate(include):
        if one not in _INCLUDABLE:
            raise unknown_value(one, _INCLUDABLE, f"include[{place}]")


def _tools(tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [_tool(tool, f"tools[{place}]") for place, tool in enumerate(tools)]


def _tool(tool: Object, where: str) -> dict[str, Any]:
    if tool.get("type") != "function":
        raise Malformed(
            f"Tool type {tool.get('type')!r} is not supported with this model; it can be given tools "
            "of type 'function' alone, which the agent runs.",
            param=f"{where}.type",
            code="unsupported_value",
        )
    text_field(tool, "name", where)
    names = ("name", "description", "parameters", "strict")
    function = {name: tool[name] for name in names if tool.get(name) is not None}
    return {"type": "function", "function": function}


def _tool_choice(choice: str | dict[str, Any] | None) -> Any:
    if choice is None or (isinstance(choice, str) and choice in _CHOICES):
        return choice
    if isinstance(choice, str):
        raise unknown_value(choice, _CHOICES, "tool_choice")
    if choice.get("type") != "function":
        raise Malformed(
            f"Tool choice {choice.get('type')!r} is not supported with this model; choose 'none', "
            "'auto', 'required' or a function.",
            param="tool_choice",
            code="unsupported_value",
        )
    return {"type": "function", "function": {"name": text_field(choice, "name", "tool_choice")}}


def _response_format(given: _Format | None) -> dict[str, Any] | None:
    match given.type if given is not None else "text":
        case "text":
            return None
        case "json_object":
            return {"type": "json_object"}
        case "json_schema" if given is not None:
            parts = {
                "name": given.name,
                "schema": given.schema,
                "strict": given.strict,
                "description": given.description,
            }
            schema = {name: value for name, value in parts.items() if value is not None}
            return {"type": "json_schema", "json_schema": schema}
        case other:
            raise unknown_value(other, ("text", "json_object", "json_schema"), "text.format.type")


RESPONSES = Spoken(Dialect.RESPONSES, _read, Refusal.body)
