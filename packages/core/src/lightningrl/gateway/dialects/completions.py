"""OpenAI completions of a plain text: no chat template between the agent and the tokens.

Invariant: the answer is recorded as a message with the text, so that readers of records need not know of
this dialect.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from lightningrl.gateway.asgi import Refusal, to_json
from lightningrl.gateway.dialects.arrays import decoded
from lightningrl.gateway.dialects.base import Recall, Spoken, Written, data_event
from lightningrl.gateway.dialects.completions_fields import COMPLETIONS_FIELDS
from lightningrl.gateway.dialects.engine_reply import NULL, EngineChoice, EngineReply
from lightningrl.gateway.dialects.engine_request import EngineRequest, StreamOptions, Wanted
from lightningrl.gateway.dialects.reading import decode, raw_fields
from lightningrl.schema import Dialect, Sampling, StepId


class _Asked(msgspec.Struct, frozen=True):
    """The fields of a request that the gateway acts on; all others pass through."""

    model: str
    prompt: str | list[str | int | list[int]]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: int | None = None
    n: int | None = None
    echo: bool | None = None
    best_of: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    max_tokens: int | None = None


_ASKED = msgspec.json.Decoder(_Asked)
_SHARED = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "max_tokens",
)


class _Logprobs(msgspec.Struct, frozen=True):
    token_logprobs: list[float | None] = []


class _Choice(msgspec.Struct, frozen=True):
    index: int = 0
    text: str = ""
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    logprobs: msgspec.Raw = NULL
    token_ids: msgspec.Raw = NULL
    prompt_token_ids: msgspec.Raw = NULL
    weight_versions: msgspec.Raw = NULL


class _Reply(msgspec.Struct, frozen=True):
    choices: list[_Choice]
    created: int = 0
    usage: msgspec.Raw = NULL
    system_fingerprint: str | None = None


_REPLY = msgspec.json.Decoder(_Reply)
_LOGPROBS: msgspec.json.Decoder[_Logprobs | None] = msgspec.json.Decoder(_Logprobs | None)
_CHOICE = msgspec.json.Decoder(EngineChoice)
_MESSAGE = msgspec.json.Decoder(dict[str, Any])


class CompletionAsk(EngineRequest, frozen=True):
    """A completion to ask of the engine, in its own form."""

    logprobs: int = 0
    """Alternatives that the agent wants of each token."""

    @property
    def path(self) -> str:
        """Route below the engine's base URL."""
        return "/completions"

    def asked(self, policy: str, sampling: Sampling | None) -> dict[str, Any]:
        """The fields of the request as the engine gets it."""
        fields = super().asked(policy, sampling)
        for name in ("echo", "best_of", "suffix"):  # at values that ask for nothing
            fields.pop(name, None)
        return {**fields, "logprobs": self.logprobs}

    def is_beyond_context(self, refusal: bytes) -> bool:
        """Never: without a limit an engine gives 16 tokens, not what the context has room for."""
        del refusal
        return False

    def parse(self, answer: bytes) -> EngineReply:
        """Read the engine's answer, as if it were a chat completion.

        Raises:
            msgspec.DecodeError: it is not a completion.
        """
        reply = decoded(_REPLY, answer)
        return EngineReply(
            choices=[_engine_choice(one) for one in reply.choices],
            created=reply.created,
            usage=reply.usage,
            system_fingerprint=reply.system_fingerprint,
            prompt_token_ids=reply.choices[0].prompt_token_ids if reply.choices else NULL,
        )


def _engine_choice(one: _Choice) -> EngineChoice:
    found = decoded(_LOGPROBS, bytes(one.logprobs))
    entries = [{"logprob": value} for value in found.token_logprobs] if found else None
    as_chat = {
        "index": one.index,
        "message": {"role": "assistant", "content": one.text},
        "finish_reason": one.finish_reason,
        "stop_reason": one.stop_reason,
        "logprobs": {"content": entries} if entries is not None else None,
        "text_logprobs": one.logprobs,
        "token_ids": one.token_ids,
        "weight_versions": one.weight_versions,
    }
    return _CHOICE.decode(to_json(as_chat))


class CompletionsRequest(msgspec.Struct, frozen=True):
    """A request with what the engine is asked."""

    body: bytes
    wanted: _Asked
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
        """The completion; its id is the step id, so rewards can name it by either."""
        wanted = self.wanted
        head = {
            "id": step_id,
            "object": "text_completion",
            "created": reply.created,
            "model": wanted.model,
            "system_fingerprint": reply.system_fingerprint,
        }
        choices = [_agent_choice(one, wanted.logprobs is not None) for one in reply.choices]
        if not wanted.stream:
            whole = {**head, "choices": choices, "usage": reply.usage}
            return Written(to_json(whole), streams=False)
        asked = bool(wanted.stream_options and wanted.stream_options.include_usage)
        chunks = list(_chunks(head, choices, reply.usage, asked=asked))
        events = b"".join(b"data: %s\n\n" % to_json(chunk) for chunk in chunks)
        return Written(events + b"data: [DONE]\n\n", streams=True)


def _agent_choice(one: EngineChoice, logprobs: bool) -> dict[str, Any]:
    return {
        "index": one.index,
        "text": _MESSAGE.decode(one.message)["content"],
        "logprobs": one.text_logprobs if logprobs else None,
        "finish_reason": one.finish_reason,
    }


def _chunks(
    head: Mapping[str, Any], choices: list[dict[str, Any]], usage: msgspec.Raw, *, asked: bool
) -> Iterator[dict[str, Any]]:
    """Per choice its text, then its end; the token counts last, in a chunk of their own where they were asked for."""
    tail = {"usage": None} if asked else {}
    for place, choice in enumerate(choices, start=1):
        ending = {**choice, "text": "", "logprobs": None}
        last = {} if asked or place < len(choices) else {"usage": usage}
        yield {**head, "choices": [{**choice, "finish_reason": None}], **tail}
        yield {**head, "choices": [ending], **tail, **last}
    if asked:
        yield {**head, "choices": [], "usage": usage}


async def _read(body: bytes, recall: Recall) -> CompletionsRequest:
    del recall  # a completion holds its whole prompt
    asked = decode(_ASKED, body)
    fields = raw_fields(body)
    unknown = COMPLETIONS_FIELDS.check(fields)
    for name in unknown:
        fields.pop(name, None)
    _check(asked)
    shared = {name: getattr(asked, name) for name in _SHARED}
    wanted = Wanted(model=asked.model, messages=[], logprobs=True, **shared)
    return CompletionsRequest(
        body, asked, CompletionAsk(wanted, fields, asked.logprobs or 0), unknown
    )


def _check(asked: _Asked) -> None:
    """Refuse what one call can't be."""
    prompt = asked.prompt
    tokens = isinstance(prompt, list) and all(isinstance(one, int) for one in prompt)
    if isinstance(prompt, list) and len(prompt) != 1 and not tokens:
        message = "'prompt': a call has one prompt here; send a request for each."
        raise Refusal(400, "unsupported_value", message, param="prompt")
    if asked.echo:
        message = "'echo' is not supported with this model; an answer holds no prompt."
        raise Refusal(400, "unsupported_parameter", message, param="echo")
    if (asked.best_of or 1) > (asked.n or 1):
        message = "'best_of' is not supported with this model; ask for 'n' answers."
        raise Refusal(400, "unsupported_parameter", message, param="best_of")


COMPLETIONS = Spoken(
    Dialect.COMPLETIONS, _read, COMPLETIONS_FIELDS.refuse, Refusal.body, data_event
)
