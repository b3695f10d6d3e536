"""OpenAI Responses: items in, items out, and conversations that go on by a response's id.

Invariants:
- The engine is asked for exactly the messages that `conversation.messages_of` reads from the record.
- The agent sees no token id, and log-probs only if it included them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from lightningrl.conversation import responses
from lightningrl.conversation.history import Recorded
from lightningrl.conversation.malformed import Malformed, unknown_value
from lightningrl.conversation.tools.responses import Form
from lightningrl.gateway.asgi import Refusal, to_json
from lightningrl.gateway.dialects.base import Recall, Spoken, Written, error_event
from lightningrl.gateway.dialects.engine_reply import EngineReply
from lightningrl.gateway.dialects.engine_request import EngineRequest, engine_request
from lightningrl.gateway.dialects.reading import decode, decoded_fields, refusal_of
from lightningrl.gateway.dialects.responses_fields import RESPONSES_FIELDS
from lightningrl.gateway.dialects.responses_reply import response
from lightningrl.gateway.dialects.responses_stream import event_stream
from lightningrl.gateway.dialects.within import unread_of_items
from lightningrl.schema import Dialect, StepId

_INCLUDABLE = (
    responses.LOGPROBS,
    "reasoning.encrypted_content",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
)


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
    """The types of a request's fields; what they say is read by `conversation`."""

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
    generate: bool | None = None


_WANTED = msgspec.json.Decoder(Wanted)


class ResponsesRequest(msgspec.Struct, frozen=True):
    """A request with its conversation."""

    body: bytes
    fields: dict[str, Any]
    """As the agent sent them; the reply repeats some."""
    wanted: Wanted
    engine: EngineRequest
    forms: Mapping[str, Form]
    """Of the tools that are no plain functions: how their calls come back."""
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
        """The response; its id is the step's, prefixed as the service does."""
        logprobs = responses.LOGPROBS in (self.wanted.include or ())
        whole = response(self.fields, reply, step_id, logprobs=logprobs, forms=self.forms)
        if self.wanted.stream:
            return Written(event_stream(whole), streams=True)
        return Written(to_json(whole), streams=False)


async def _read(body: bytes, recall: Recall) -> ResponsesRequest:
    fields = decoded_fields(body)
    of_items = unread_of_items(fields, RESPONSES_FIELDS.unknown_of_tools)
    unknown = (*RESPONSES_FIELDS.check(fields), *of_items)
    wanted = decode(_WANTED, body)
    if wanted.background:
        raise Refusal(
            400,
            "unsupported_parameter",
            "'background': responses are answered at once; leave it away",
            param="background",
        )
    if wanted.generate is False:
        raise Refusal(
            400,
            "unsupported_parameter",
            "'generate': every request is answered here; turn warming up off in the client",
            param="generate",
        )
    try:
        earlier = await recall() if _refers(wanted) else Recorded()
        asked = responses.chat_request(fields, earlier.responses)
        forms = responses.declared_tools(fields, earlier.responses).forms
        _check_include(wanted.include or [])
    except Malformed as error:
        raise refusal_of(error) from error
    return ResponsesRequest(body, fields, wanted, engine_request(to_json(asked)), forms, unknown)


def _refers(wanted: Wanted) -> bool:
    """Whether the request refers to an earlier response."""
    items = [] if isinstance(wanted.input, str) else wanted.input
    return wanted.previous_response_id is not None or any(
        responses.item_type(one) == "item_reference" for one in items
    )


def _check_include(include: list[str]) -> None:
    for place, one in enumerate(include):
        if one not in _INCLUDABLE:
            raise unknown_value(one, _INCLUDABLE, f"include[{place}]")


RESPONSES = Spoken(Dialect.RESPONSES, _read, RESPONSES_FIELDS.refuse, Refusal.body, error_event)
