"""OpenAI chat completions.

Invariant: the agent never sees a token id, and a log-prob only if it asked for log-probs; its reply
holds the fields of OpenAI's format and no other, under the model name that it asked for.
"""

from __future__ import annotations

import msgspec

from lightningrl.conversation.malformed import Malformed
from lightningrl.conversation.tools import chat as tools
from lightningrl.gateway.asgi import Refusal, to_json
from lightningrl.gateway.dialects.base import Recall, Spoken, Written, data_event
from lightningrl.gateway.dialects.chat_fields import CHAT_FIELDS
from lightningrl.gateway.dialects.chat_reply import (
    AgentChoice,
    AgentReply,
    event,
    event_stream,
    with_custom_calls,
)
from lightningrl.gateway.dialects.engine_reply import NULL, EngineReply
from lightningrl.gateway.dialects.engine_request import EngineRequest, engine_request
from lightningrl.gateway.dialects.reading import refusal_of
from lightningrl.schema import Dialect, StepId


class ChatRequest(msgspec.Struct, frozen=True):
    """A request that is in the engine's form already."""

    body: bytes
    engine: EngineRequest
    unknown: tuple[str, ...] = ()
    """Paths of what no row of the dialect's table knows: left out."""
    customs: frozenset[str] = frozenset()
    """Names of the functions that are custom tools of the agent's."""

    @property
    def model(self) -> str:
        """The model name that the agent asked for."""
        return self.engine.wanted.model

    @property
    def streams(self) -> bool:
        """Whether the agent asked for a stream."""
        return bool(self.engine.wanted.stream)

    def write(self, reply: EngineReply, step_id: StepId) -> Written:
        """The answer; its id is the step id, so rewards can name it by either."""
        wanted = self.engine.wanted
        answer = AgentReply(
            id=step_id,
            created=reply.created,
            model=wanted.model,
            choices=[
                AgentChoice(
                    one.index,
                    with_custom_calls(one.message, self.customs) if self.customs else one.message,
                    one.finish_reason,
                    one.logprobs if wanted.logprobs else NULL,
                )
                for one in reply.choices
            ],
            usage=reply.usage,
            system_fingerprint=reply.system_fingerprint,
            service_tier=reply.service_tier,
        )
        if not wanted.stream:
            return Written(to_json(answer), streams=False)
        options = wanted.stream_options
        usage = bool(options and options.include_usage)
        return Written(event_stream(answer, include_usage=usage), streams=True)


async def _read(body: bytes, recall: Recall) -> ChatRequest:
    del recall  # every request holds its whole conversation
    asked = engine_request(body)
    unknown = CHAT_FIELDS.check(asked.fields)
    for name in (*CHAT_FIELDS.accepted, *CHAT_FIELDS.never, *unknown):
        asked.fields.pop(name, None)
    try:
        read = tools.chat_request(asked.fields)
        customs = tools.custom_names(asked.fields)
    except Malformed as error:
        raise refusal_of(error) from error
    if read is not asked.fields:
        asked = msgspec.structs.replace(asked, fields=read)
    return ChatRequest(body, asked, unknown, customs)


def _waiting(model: str, step_id: StepId) -> bytes:
    """A chunk that adds nothing: some clients time chunks, and no comments. It has no role, which comes once."""
    return event(
        {
            "id": step_id,
            "object": "chat.completion.chunk",
            "created": 0,
            "model": model,
            "choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": None}],
        }
    )


CHAT = Spoken(Dialect.CHAT, _read, CHAT_FIELDS.refuse, Refusal.body, data_event, _waiting)
