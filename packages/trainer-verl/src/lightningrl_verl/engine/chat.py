"""The chat-completions wire format: what a request may hold, and how a reply is laid out.

Invariant: a field is honoured, or it is harmless, or the request is refused by that field's name;
nothing that would change the answer is ignored. Field names are OpenAI's and vLLM's.
"""

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from lightningrl_verl.engine.errors import SamplingError
from lightningrl_verl.engine.parsers import ParsedMessage, ToolParser
from lightningrl_verl.engine.sampling import SamplingParams
from lightningrl_verl.engine.scheduler import Completion


class BadRequestError(Exception):
    """A request that is answered with status 400 or 404."""

    def __init__(
        self, message: str, *, param: str | None = None, code: str | None = None, status: int = 400
    ) -> None:
        """Names the field at fault, if it is one, in `param`."""
        super().__init__(message)
        self.message, self.param, self.code, self.status = message, param, code, status


class SampledRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What any request for answers reads; `Any` fields are checked against `_NEUTRAL`."""

    model: str
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    stop_token_ids: list[int] | None = None
    return_token_ids: bool | None = None
    user: Any = None

    stream: Any = None
    stream_options: Any = None
    stop: Any = None
    logit_bias: Any = None
    min_p: Any = None
    min_tokens: Any = None
    repetition_penalty: Any = None
    ignore_eos: Any = None
    skip_special_tokens: Any = None
    include_stop_str_in_output: Any = None
    echo: Any = None


class ChatRequest(SampledRequest, forbid_unknown_fields=True, kw_only=True):
    """What `POST /v1/chat/completions` reads."""

    messages: msgspec.Raw
    tools: msgspec.Raw = msgspec.Raw(b"null")
    chat_template_kwargs: dict[str, Any] | None = None
    """Further variables of the template (vLLM)."""
    tool_choice: Any = None
    logprobs: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    """Writes `token_id:ID` for each token of `logprobs` (vLLM)."""

    metadata: Any = None
    parallel_tool_calls: Any = None
    service_tier: Any = None
    prompt_cache_key: Any = None
    safety_identifier: Any = None
    reasoning_effort: Any = None
    """A hint; the models that this engine serves know no degrees of it."""

    store: Any = None
    response_format: Any = None
    top_logprobs: Any = None
    add_generation_prompt: Any = None
    continue_final_message: Any = None


_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "stream": (False,),
    "stream_options": (),
    "stop": ([],),
    "store": (False,),
    "response_format": ({"type": "text"},),
    "logit_bias": ({},),
    "top_logprobs": (0,),
    "min_p": (0,),
    "min_tokens": (0,),
    "repetition_penalty": (1,),
    "ignore_eos": (False,),
    "skip_special_tokens": (True,),
    "include_stop_str_in_output": (False,),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "echo": (False,),
}
"""Fields that are accepted, besides null, only at values which change nothing."""

_REMEDIES: Mapping[str, str] = {
    "stream": "; the engine answers whole, and the gateway re-chunks the answer for clients that stream",
    "stop": "; end answers by `stop_token_ids` or `max_tokens`",
}

R = TypeVar("R", bound=SampledRequest)

_DECODER = msgspec.json.Decoder(ChatRequest)


def read_request(body: bytes) -> ChatRequest:
    """Decodes and checks one request.

    Raises:
        BadRequestError: It is no JSON, a field is unknown or of the wrong type, or has a value that
            the engine does not honour.
    """
    request = decoded(_DECODER, body)
    if request.tool_choice not in (None, "auto", "none"):
        raise BadRequestError(
            f"`tool_choice`={request.tool_choice!r} is not supported; use 'auto' or 'none'",
            param="tool_choice",
        )
    return request


def decoded(decoder: msgspec.json.Decoder[R], body: bytes) -> R:
    """Decodes one request and checks the fields that any request may have.

    Raises:
        BadRequestError: As `read_request`.
    """
    try:
        request = decoder.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadRequestError(str(error), param=_field_in(str(error))) from error
    for name, neutral in _NEUTRAL.items():
        value = getattr(request, name, None)
        if value is not None and value not in neutral:
            raise BadRequestError(
                f"`{name}`={value!r} is not supported{_REMEDIES.get(name, '')}", param=name
            )
    if request.n is not None and request.n < 1:
        raise BadRequestError(f"`n`={request.n} must be at least 1", param="n")
    return request


def _field_in(message: str) -> str | None:
    """The field that a msgspec message names: quoted, or after `$.`."""
    if "`$." in message:
        return message.split("`$.", 1)[1].split("`", 1)[0]
    return message.split("field `", 1)[1].split("`", 1)[0] if "field `" in message else None


def sampling_of(request: SampledRequest) -> list[SamplingParams]:
    """One set of parameters per choice; choice `i` of a seeded request has seed `seed + i`, as in vLLM.

    Raises:
        BadRequestError: A value is out of range.
    """
    limit = request.max_completion_tokens
    given: dict[str, Any] = {
        "max_tokens": request.max_tokens if limit is None else limit,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
        "presence_penalty": request.presence_penalty,
        "frequency_penalty": request.frequency_penalty,
        "stop_token_ids": None if request.stop_token_ids is None else tuple(request.stop_token_ids),
    }
    given = {name: value for name, value in given.items() if value is not None}
    first = request.seed
    seeds = [None if first is None else first + index for index in range(request.n or 1)]
    try:
        return [SamplingParams(**given, seed=seed) for seed in seeds]
    except SamplingError as error:
        raise BadRequestError(str(error), param=str(error).split(" ", 1)[0]) from error


@dataclass(frozen=True, slots=True)
class ReplyWriter:
    """Lays out replies for one model and one tool parser."""

    model_name: str
    parser: ToolParser
    decode: Callable[[Sequence[int]], str]
    """Token ids to text, special tokens kept."""
    token_text: Callable[[int], str]
    """One token id to text."""
    eos_token_ids: frozenset[int]
    """Left out of the text where they end an answer."""

    def reply(
        self,
        request: ChatRequest,
        prompt_ids: Sequence[int],
        tools: Sequence[Mapping[str, Any]],
        completions: Sequence[Completion],
    ) -> dict[str, Any]:
        """The whole body of a reply.

        Args:
            request: Says which of the optional parts are wanted.
            prompt_ids: The prompt that was served.
            tools: The tools that the answer may call.
            completions: One per choice.
        """
        generated = sum(len(completion.token_ids) for completion in completions)
        body: dict[str, Any] = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": self.model_name,
            "choices": [
                self._choice(request, index, completion, tools)
                for index, completion in enumerate(completions)
            ],
            "usage": {
                "prompt_tokens": len(prompt_ids),
                "completion_tokens": generated,
                "total_tokens": len(prompt_ids) + generated,
            },
        }
        if request.return_token_ids:
            body["prompt_token_ids"] = prompt_ids
        return body

    def _choice(
        self,
        request: ChatRequest,
        index: int,
        completion: Completion,
        tools: Sequence[Mapping[str, Any]],
    ) -> dict[str, Any]:
        parsed = self._parsed(completion, tools)
        message: dict[str, Any] = {"role": "assistant", "content": parsed.content}
        if parsed.tool_calls:
            message["tool_calls"] = [
                {
                    "id": f"call_{uuid.uuid4().hex[:24]}",
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments_json},
                }
                for call in parsed.tool_calls
            ]
        choice: dict[str, Any] = {
            "index": index,
            "message": message,
            "finish_reason": "tool_calls" if parsed.tool_calls else completion.finish_reason,
            "logprobs": self._logprobs(request, completion) if request.logprobs else None,
            "weight_versions": completion.spans,
        }
        if request.return_token_ids:
            choice["token_ids"] = completion.token_ids
        if parsed.error is not None:
            choice["tool_parser_error"] = parsed.error
        return choice

    def text(self, completion: Completion) -> str:
        """The answer as text, without the token that ended it."""
        ids = completion.token_ids
        return self.decode(ids[:-1] if ids[-1] in self.eos_token_ids else ids)

    def _parsed(self, completion: Completion, tools: Sequence[Mapping[str, Any]]) -> ParsedMessage:
        text = self.text(completion)
        parsed = self.parser.parse(text, tools)
        cut_off = completion.finish_reason == "length"
        if parsed.tool_calls and cut_off and not self.parser.marks_end:
            return ParsedMessage(content=text, error="the tool call was cut off by the token limit")
        return parsed

    def _logprobs(self, request: ChatRequest, completion: Completion) -> dict[str, Any]:
        as_ids = request.return_tokens_as_token_ids
        content: list[dict[str, Any]] = []
        for token, logprob in zip(completion.token_ids, completion.logprobs, strict=True):
            text = self.token_text(token)
            content.append(
                {
                    "token": f"token_id:{token}" if as_ids else text,
                    "logprob": logprob,
                    "bytes": list(text.encode()),
                    "top_logprobs": [],
                }
            )
        return {"content": content}
