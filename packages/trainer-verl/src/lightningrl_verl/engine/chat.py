"""The chat-completions wire format: what a request may hold, and how a reply is laid out.

Invariant: a field is honoured, or it is harmless, or the request is refused by that field's name; nothing that would
change vLLM's answer is ignored. Field names are OpenAI's and vLLM's.
"""

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import msgspec

from lightningrl.conversation.malformed import Malformed
from lightningrl.conversation.rewriting import Rewriter
from lightningrl.conversation.rewriting.fields import raw_fields
from lightningrl.schema import Dialect, RewriteRules
from lightningrl_verl.engine.errors import SamplingError
from lightningrl_verl.engine.parsers import ParsedMessage, ToolParser
from lightningrl_verl.engine.sampling import SamplingParams
from lightningrl_verl.engine.scheduler import Completion
from lightningrl_verl.engine.stop_texts import cut_at


class BadRequestError(Exception):
    """A request that is answered with status 400 or 404."""

    def __init__(
        self, message: str, *, param: str | None = None, code: str | None = None, status: int = 400
    ) -> None:
        """Names the field at fault, if it is one, in `param`."""
        super().__init__(message)
        self.message, self.param, self.code, self.status = message, param, code, status


class SampledRequest(msgspec.Struct, kw_only=True):
    """What any request for answers reads."""

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
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    return_token_ids: bool | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end an answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class ChatRequest(SampledRequest, kw_only=True):
    """What `POST /v1/chat/completions` reads."""

    messages: msgspec.Raw
    tools: msgspec.Raw = msgspec.Raw(b"null")
    documents: list[dict[str, Any]] | None = None
    """Another variable of the template (vLLM)."""
    reasoning_effort: str | None = None
    """Another one: few templates read it (gpt-oss's)."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Further variables of the template (vLLM)."""
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    """False: of several calls in an answer the first alone is one, as in vLLM."""
    logprobs: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    """Writes `token_id:ID` for each token of `logprobs` (vLLM)."""
    response_format: Any = None


NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "stream": (False,),
    "stream_options": (),
    "response_format": ({"type": "text"},),
    "logit_bias": ({},),
    "top_logprobs": (0,),
    "min_p": (0,),
    "min_tokens": (0,),
    "repetition_penalty": (1,),
    "length_penalty": (1,),
    "ignore_eos": (False,),
    "use_beam_search": (False,),
    "skip_special_tokens": (True, False),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "add_special_tokens": (False,),
    "echo": (False,),
    "suffix": ("",),
    "best_of": (1,),
    "chat_template": (),
    "truncate_prompt_tokens": (),
    "thinking_token_budget": (),
    "allowed_token_ids": ([],),
    "bad_words": ([],),
    "logits_processors": ([],),
    "custom_logit_processor": (),
    "structured_outputs": ({},),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "json_schema": (),
    "regex": (),
    "ebnf": (),
    "structural_tag": (),
}
"""Fields that would change the answer and are not served -> the values, beside null, at which they change nothing."""

_REMEDIES: Mapping[str, str] = {
    "stream": "; the engine answers whole, and the gateway re-chunks the answer for clients that stream",
}

R = TypeVar("R", bound=SampledRequest)

_DECODER = msgspec.json.Decoder(ChatRequest)
_ANY: msgspec.json.Decoder[Any] = msgspec.json.Decoder()
_IN_WORDS = Rewriter(RewriteRules(free=True))


def read_request(body: bytes) -> ChatRequest:
    """Decodes and checks one request.

    There is no grammar here: a tool that must be called may be called, and a JSON schema is said in words.

    Raises:
        BadRequestError: It is no JSON, a field is of the wrong type, or has a value that would change the answer
            and is not served.
    """
    request = decoded(_DECODER, body, served=("response_format",))
    plain = request.tool_choice in (None, "auto", "none")
    if not plain or request.response_format is not None:
        try:
            fields = _IN_WORDS.rewrite(raw_fields(body), Dialect.CHAT).fields
        except Malformed as error:
            raise BadRequestError(error.message, param=error.param, code=error.code) from error
        request = decoded(_DECODER, msgspec.json.encode(fields))
    if request.tool_choice not in (None, "auto", "none"):
        raise BadRequestError(
            f"`tool_choice`={request.tool_choice!r} is not supported; use 'auto', 'none', 'required' or a function",
            param="tool_choice",
        )
    return request


def decoded(decoder: msgspec.json.Decoder[R], body: bytes, served: Sequence[str] = ()) -> R:
    """Decodes one request and checks the fields that any request may have; what nobody knows is passed over, as in vLLM.

    Args:
        decoder: Of the kind of request.
        body: JSON.
        served: Fields of `NEUTRAL` that the caller looks at itself.

    Raises:
        BadRequestError: As `read_request`.
    """
    try:
        request = decoder.decode(body)
        fields = raw_fields(body)
        given = {name: _ANY.decode(fields[name]) for name in NEUTRAL if name in fields}
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadRequestError(str(error), param=_field_in(str(error))) from error
    for name, value in given.items():
        if name not in served and value is not None and value not in NEUTRAL[name]:
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
        "stop": request.stops,
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
        parsed = self._parsed(request, completion, tools)
        if request.parallel_tool_calls is False and len(parsed.tool_calls) > 1:
            parsed = replace(parsed, tool_calls=parsed.tool_calls[:1])
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
            "stop_reason": self.stop_reason(completion),
            "logprobs": self._logprobs(request, completion) if request.logprobs else None,
            "weight_versions": completion.spans,
        }
        if request.return_token_ids:
            choice["token_ids"] = completion.token_ids
        if parsed.error is not None:
            choice["tool_parser_error"] = parsed.error
        return choice

    def text(self, request: SampledRequest, completion: Completion) -> str:
        """The answer as text, without the token or the text that ended it."""
        ids = completion.token_ids
        text = self.decode(ids[:-1] if ids[-1] in self.eos_token_ids else ids)
        if completion.stop_text is None:
            return text
        return cut_at(text, completion.stop_text, keep=bool(request.include_stop_str_in_output))

    def stop_reason(self, completion: Completion) -> str | int | None:
        """The text or the token of the request's that ended the answer, as vLLM names it."""
        last = completion.token_ids[-1]
        if completion.finish_reason == "length" or last in self.eos_token_ids:
            return None
        return last if completion.stop_text is None else completion.stop_text

    def _parsed(
        self, request: ChatRequest, completion: Completion, tools: Sequence[Mapping[str, Any]]
    ) -> ParsedMessage:
        text = self.text(request, completion)
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
