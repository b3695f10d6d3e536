"""The completions wire format: a plain text, or token ids, without a chat template.

Invariant: as for `chat`, a field is honoured, or it is harmless, or the request is refused by its name.
"""

import time
import uuid
from collections.abc import Sequence
from typing import Any

import msgspec
from transformers import PreTrainedTokenizerBase

from lightningrl_verl.engine.chat import BadRequestError, ReplyWriter, SampledRequest, decoded
from lightningrl_verl.engine.scheduler import Completion

_DEFAULT_MAX_TOKENS = 16
"""OpenAI's and vLLM's."""


class CompletionRequest(SampledRequest, kw_only=True):
    """What `POST /v1/completions` reads."""

    prompt: str | list[str | int | list[int]]
    logprobs: int | None = None
    """0: those of the sampled tokens. More: refused."""
    prompt_logprobs: int | None = None
    """0: those of the prompt's own tokens, at temperature 1, as vLLM gives them. More: refused."""


_DECODER = msgspec.json.Decoder(CompletionRequest)


def read_completion(body: bytes) -> CompletionRequest:
    """Decodes and checks one request.

    Raises:
        BadRequestError: As `chat.read_request`.
    """
    request = decoded(_DECODER, body)
    if request.logprobs:
        raise BadRequestError(
            f"`logprobs`={request.logprobs} is not supported; 0 gives the sampled tokens'",
            param="logprobs",
        )
    if request.prompt_logprobs:
        raise BadRequestError(
            f"`prompt_logprobs`={request.prompt_logprobs} is not supported; 0 gives the prompt's own",
            param="prompt_logprobs",
        )
    if request.max_tokens is None:
        request.max_tokens = _DEFAULT_MAX_TOKENS
    return request


def plain_ids(request: CompletionRequest, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The token ids of the prompt.

    Raises:
        BadRequestError: There are several prompts, or none.
    """
    match request.prompt:
        case str() as text:
            ids: Any = tokenizer(text)["input_ids"]
        case [str() as text]:
            ids = tokenizer(text)["input_ids"]
        case [list() as ids]:
            pass
        case ids if all(isinstance(one, int) for one in ids):
            pass
        case _:
            raise BadRequestError("one prompt a request", param="prompt")
    if not ids:
        raise BadRequestError("`prompt` is empty", param="prompt")
    if any(not 0 <= one < len(tokenizer) for one in ids):
        raise BadRequestError("`prompt` has ids that are no tokens", param="prompt")
    return list(ids)


def completion_reply(
    writer: ReplyWriter,
    request: CompletionRequest,
    prompt_ids: Sequence[int],
    completions: Sequence[Completion],
    prompt_logprobs: Sequence[float] | None = None,
) -> dict[str, Any]:
    """The whole body of a reply; `prompt_logprobs` are of the prompt's tokens after the first."""
    generated = sum(len(one.token_ids) for one in completions)
    return {
        "id": f"cmpl-{uuid.uuid4().hex}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": writer.model_name,
        "choices": [
            _choice(writer, request, index, prompt_ids, one)
            | _of_prompt(prompt_ids, prompt_logprobs)
            for index, one in enumerate(completions)
        ],
        "usage": {
            "prompt_tokens": len(prompt_ids),
            "completion_tokens": generated,
            "total_tokens": len(prompt_ids) + generated,
        },
    }


def _choice(
    writer: ReplyWriter,
    request: CompletionRequest,
    index: int,
    prompt_ids: Sequence[int],
    completion: Completion,
) -> dict[str, Any]:
    choice: dict[str, Any] = {
        "index": index,
        "text": writer.text(request, completion),
        "finish_reason": completion.finish_reason,
        "stop_reason": writer.stop_reason(completion),
        "logprobs": None,
        "weight_versions": completion.spans,
    }
    if request.logprobs is not None:
        tokens = [writer.token_text(token) for token in completion.token_ids]
        choice["logprobs"] = {"tokens": tokens, "token_logprobs": completion.logprobs}
    if request.return_token_ids:
        choice |= {"token_ids": completion.token_ids, "prompt_token_ids": prompt_ids}
    return choice


def _of_prompt(
    prompt_ids: Sequence[int], prompt_logprobs: Sequence[float] | None
) -> dict[str, Any]:
    if prompt_logprobs is None:
        return {}
    pairs = zip(prompt_ids[1:], prompt_logprobs, strict=True)
    return {"prompt_logprobs": [None, *({str(token): {"logprob": one}} for token, one in pairs)]}
