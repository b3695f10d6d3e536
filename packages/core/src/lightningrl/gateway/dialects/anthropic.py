"""Anthropic messages: blocks in, blocks out, errors in Anthropic's own form.

Invariant: the engine is asked for exactly the messages that `conversation.messages_of` reads from the
record, and the agent sees no token id.
"""

from __future__ import annotations

from typing import Any

import msgspec

from lightningrl.conversation import anthropic
from lightningrl.conversation.malformed import Malformed, Object, text_field, unknown_value
from lightningrl.gateway.asgi import Refusal, to_json
from lightningrl.gateway.dialects.anthropic_fields import ANTHROPIC_FIELDS
from lightningrl.gateway.dialects.anthropic_reply import event_stream, message
from lightningrl.gateway.dialects.base import Recall, Spoken, Written
from lightningrl.gateway.dialects.engine_reply import EngineReply
from lightningrl.gateway.dialects.engine_request import EngineRequest, engine_request
from lightningrl.gateway.dialects.reading import decode, decoded_fields, refusal_of
from lightningrl.schema import Dialect, StepId

_ERRORS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


class _Format(msgspec.Struct, frozen=True):
    type: str
    schema: dict[str, Any]


class _Output(msgspec.Struct, frozen=True):
    format: _Format | None = None
    effort: str | None = None


class _Thinking(msgspec.Struct, frozen=True):
    type: str


class _Choice(msgspec.Struct, frozen=True):
    type: str
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Wanted(msgspec.Struct, frozen=True):
    """The fields of a request that are read; `messages` and `system` are read by `conversation`."""

    model: str
    max_tokens: int
    tools: list[dict[str, Any]] | None = None
    tool_choice: _Choice | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: list[str] | None = None
    output_config: _Output | None = None
    thinking: _Thinking | None = None
    stream: bool | None = None


_WANTED = msgspec.json.Decoder(Wanted)


class AnthropicRequest(msgspec.Struct, frozen=True):
    """A request with its conversation."""

    body: bytes
    wanted: Wanted
    engine: EngineRequest

    @property
    def model(self) -> str:
        """The model name that the agent asked for."""
        return self.wanted.model

    def write(self, reply: EngineReply, step_id: StepId) -> Written:
        """The message; its id is the step's, prefixed as the service does."""
        whole = message(self.wanted.model, reply, step_id)
        if self.wanted.stream:
            return Written(event_stream(whole), streams=True)
        return Written(to_json(whole), streams=False)


async def _read(body: bytes, recall: Recall) -> AnthropicRequest:
    del recall  # every request holds its whole conversation
    fields = decoded_fields(body)
    ANTHROPIC_FIELDS.check(fields)
    wanted = decode(_WANTED, body)
    try:
        engine = _engine_fields(wanted, anthropic.conversation(fields))
    except Malformed as error:
        raise refusal_of(error) from error
    return AnthropicRequest(body, wanted, engine_request(to_json(engine)))


def _engine_fields(wanted: Wanted, messages: list[anthropic.Message]) -> dict[str, Any]:
    """The request as a chat completion."""
    choice, output, thinking = wanted.tool_choice, wanted.output_config, wanted.thinking
    alone = choice is not None and choice.disable_parallel_tool_use
    fields: dict[str, Any] = {
        "model": wanted.model,
        "messages": messages,
        "max_tokens": wanted.max_tokens,
        "tools": _tools(wanted.tools) if wanted.tools else None,
        "tool_choice": _tool_choice(choice) if choice else None,
        "parallel_tool_calls": False if alone else None,
        "temperature": wanted.temperature,
        "top_p": wanted.top_p,
        "top_k": wanted.top_k,
        "stop": wanted.stop_sequences or None,
        "response_format": _response_format(output.format) if output and output.format else None,
        "reasoning_effort": output.effort if output else None,
        "chat_template_kwargs": {"enable_thinking": thinking.type != "disabled"}
        if thinking
        else None,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _tools(tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [_tool(tool, f"tools.{place}") for place, tool in enumerate(tools)]


def _tool(tool: Object, where: str) -> dict[str, Any]:
    if tool.get("type") not in (None, "custom"):
        raise Malformed(
            f"{where}: tool type {tool['type']!r} is not supported with this model; it can be given"
            " tools of type 'custom' alone, with an 'input_schema'",
            param=where,
        )
    function = {"name": text_field(tool, "name", where), "parameters": tool.get("input_schema")}
    given = {name: tool[name] for name in ("description", "strict") if tool.get(name) is not None}
    return {"type": "function", "function": {**function, **given}}


def _tool_choice(choice: _Choice) -> Any:
    if choice.type == "tool":
        if choice.name is None:
            raise Malformed("tool_choice.name: Field required", param="tool_choice.name")
        return {"type": "function", "function": {"name": choice.name}}
    if choice.type not in _CHOICES:
        raise unknown_value(choice.type, (*_CHOICES, "tool"), "tool_choice.type")
    return _CHOICES[choice.type]


def _response_format(given: _Format) -> dict[str, Any]:
    if given.type != "json_schema":
        raise unknown_value(given.type, ("json_schema",), "output_config.format.type")
    return {"type": "json_schema", "json_schema": {"name": "output", "schema": given.schema}}


def error_body(refusal: Refusal) -> bytes:
    """A refusal in Anthropic's format."""
    default = "invalid_request_error" if refusal.status < 500 else "api_error"
    kind = _ERRORS.get(refusal.status, default)
    message = refusal.message
    if refusal.param and refusal.param not in message:
        message = f"{refusal.param}: {message}"
    return to_json({"type": "error", "error": {"type": kind, "message": message}})


ANTHROPIC = Spoken(Dialect.ANTHROPIC, _read, error_body)
