"""Anthropic messages: blocks in, blocks out, errors in Anthropic's own form.

Invariant: the engine is asked for exactly the messages that `conversation.messages_of` reads from the
record, and the agent sees no token id.
"""

from __future__ import annotations

from typing import Any

import msgspec

from lightningrl.conversation import anthropic
from lightningrl.conversation.malformed import Malformed
from lightningrl.gateway.asgi import CONTEXT_EXCEEDED, Refusal, to_json
from lightningrl.gateway.dialects.anthropic_fields import ANTHROPIC_FIELDS
from lightningrl.gateway.dialects.anthropic_reply import event_stream, message
from lightningrl.gateway.dialects.base import Recall, Spoken, Written, error_event
from lightningrl.gateway.dialects.engine_reply import EngineReply
from lightningrl.gateway.dialects.engine_request import EngineRequest, engine_request
from lightningrl.gateway.dialects.reading import decode, decoded_fields, refusal_of
from lightningrl.gateway.dialects.within import unread_of_messages
from lightningrl.schema import Dialect, StepId

_TOO_LONG = "prompt is too long"
_ERRORS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


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
    """The types of a request's fields; what they say is read by `conversation`."""

    model: str
    max_tokens: int
    tools: list[dict[str, Any]] | None = None
    tool_choice: _Choice | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: list[str] | None = None
    output_config: _Output | None = None
    output_format: _Format | None = None
    thinking: _Thinking | None = None
    stream: bool | None = None


_WANTED = msgspec.json.Decoder(Wanted)


class AnthropicRequest(msgspec.Struct, frozen=True):
    """A request with its conversation."""

    body: bytes
    wanted: Wanted
    engine: EngineRequest
    unknown: tuple[str, ...] = ()
    """Paths of what no row of the dialect's table knows: left out."""

    @property
    def model(self) -> str:
        """The model name that the agent asked for."""
        return self.wanted.model

    @property
    def streams(self) -> bool:
        """Whether the agent asked for a stream."""
        return bool(self.wanted.stream)

    def write(self, reply: EngineReply, step_id: StepId) -> Written:
        """The message; its id is the step's, prefixed as the service does."""
        asked = self.wanted.thinking
        thinking = asked is not None and asked.type != "disabled"
        whole = message(self.wanted.model, reply, step_id, thinking=thinking)
        if self.wanted.stream:
            return Written(event_stream(whole), streams=True)
        return Written(to_json(whole), streams=False)


async def _read(body: bytes, recall: Recall) -> AnthropicRequest:
    del recall  # every request holds its whole conversation
    fields = decoded_fields(body)
    unknown = (*ANTHROPIC_FIELDS.check(fields), *unread_of_messages(fields))
    wanted = decode(_WANTED, body)
    try:
        asked = anthropic.chat_request(fields)
        _refuse_prefill(asked["messages"])
    except Malformed as error:
        raise refusal_of(error) from error
    return AnthropicRequest(body, wanted, engine_request(to_json(asked)), unknown)


def _refuse_prefill(messages: list[anthropic.Message]) -> None:
    """An engine would begin a new turn after it; newer models of the service refuse it, too."""
    if messages and messages[-1]["role"] == "assistant":
        raise Malformed(
            "This model does not support assistant message prefill. The conversation must end with a user"
            " message.",
            param="messages",
        )


def error_body(refusal: Refusal) -> bytes:
    """A refusal in Anthropic's format."""
    default = "invalid_request_error" if refusal.status < 500 else "api_error"
    kind = _ERRORS.get(refusal.status, default)
    message = refusal.message
    if refusal.code == CONTEXT_EXCEEDED:  # harnesses know it by these words, and cut their history
        message = f"{_TOO_LONG}: {message}"
    elif refusal.param and refusal.param not in message:
        message = f"{refusal.param}: {message}"
    error: dict[str, Any] = {"type": kind, "message": message}
    if refusal.param == "thread":  # by this the SDK goes on without threads
        error["details"] = {"error_code": "thread_unsupported_request"}
    return to_json({"type": "error", "error": error})


ANTHROPIC = Spoken(Dialect.ANTHROPIC, _read, ANTHROPIC_FIELDS.refuse, error_body, error_event)
