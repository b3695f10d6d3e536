"""OpenAI chat completions: what becomes of each request field."""

from __future__ import annotations

from typing import Any

import msgspec

from lightningrl.gateway.dialects.engine_fields import rows_of_chat
from lightningrl.gateway.dialects.fields import (
    OTHERS,
    FieldTable,
    accepted,
    emulated,
    passed,
    refused,
)

_UNSUPPORTED = "unsupported_parameter"
_SAMPLING = "unless the rollout says how to sample"
_UNTRAINED = "the answer is not trained"
_UNLESS_FREE = "(`constrained: free` of the policy: it is asked for in words, and trained)"

_OWN = (
    passed("model", "the policy that answers for it; the reply names the model asked for"),
    passed(
        "messages",
        "but for roles and places that the model's chat template lacks; with an image, audio, a video or a file"
        f" {_UNTRAINED}",
    ),
    refused(
        "messages",
        "an engine could leave out what they say",
        "content parts of unknown types",
        code="invalid_value",
    ),
    passed("tools", "as they are; an empty list is left out"),
    passed("tools", "as functions, and their calls come back in their own form", "custom"),
    refused(
        "tools",
        "nobody runs them here; `gateway.hosted_tools: drop` leaves them out",
        "other tool types",
        code="unsupported_value",
    ),
    passed(
        "tool_choice",
        f"`required` or a function: {_UNTRAINED} {_UNLESS_FREE}, and without tools it is refused; others are left out"
        " then",
    ),
    passed("tool_choice", "the allowed tools alone are declared", "allowed_tools"),
    passed("parallel_tool_calls", "left out without tools"),
    passed("response_format", f"but for `text` {_UNTRAINED} {_UNLESS_FREE}"),
    passed("max_tokens", "the lower of it, the rollout's and what the context still holds"),
    passed("max_completion_tokens", "as `max_tokens`"),
    passed("temperature", _SAMPLING),
    passed("top_p", _SAMPLING),
    passed("presence_penalty", _SAMPLING),
    passed("frequency_penalty", _SAMPLING),
    passed("seed", _SAMPLING),
    passed("top_k", f"(vLLM) {_SAMPLING}"),
    passed("min_p", f"(vLLM) {_SAMPLING}"),
    passed("repetition_penalty", f"(vLLM) {_SAMPLING}"),
    passed("n", "every answer is recorded, none trained where there are several"),
    passed("stop", "the engine ends the answer"),
    passed("logit_bias", _UNTRAINED),
    passed("logprobs", "the reply has them only where they were asked for"),
    passed("top_logprobs", "with `logprobs`"),
    passed("reasoning_effort", ""),
    passed("chat_template_kwargs", "(vLLM)"),
    passed("user", ""),
    emulated("stream", "the finished answer in chunks"),
    emulated(
        "stream_options",
        "`include_usage`: a chunk of their own for the token counts, which the last one has anyway",
    ),
    accepted("return_token_ids", "every call is recorded with its token ids; the agent sees none"),
    accepted("store", "every call is recorded"),
    accepted("metadata", ""),
    accepted("prediction", "a hint"),
    accepted("verbosity", "a hint; the policy answers as it was trained to"),
    accepted("service_tier", ""),
    accepted("safety_identifier", ""),
    accepted("prompt_cache_key", ""),
    accepted("prompt_cache_retention", ""),
    accepted("prompt_cache_options", ""),
    refused("functions", "declare them as `tools`", code=_UNSUPPORTED),
    refused("function_call", "say it as `tool_choice`", code=_UNSUPPORTED),
    refused("audio", "the policy answers by text", code=_UNSUPPORTED),
    refused("modalities", "the policy answers by text", code=_UNSUPPORTED),
    refused("moderation", "nothing is moderated here", code=_UNSUPPORTED),
    refused("web_search_options", "the agent runs its own tools", code=_UNSUPPORTED),
)


def _text_alone(modalities: Any) -> bool:
    """Whether it asks for what it gets anyway; undecoded in a request."""
    return (
        isinstance(modalities, msgspec.Raw) and b"".join(bytes(modalities).split()) == b'["text"]'
    )


CHAT_FIELDS = FieldTable(
    (*_OWN, *rows_of_chat(row.name for row in _OWN), OTHERS), idle={"modalities": _text_alone}
)
