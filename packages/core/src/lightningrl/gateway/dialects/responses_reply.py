"""A finished answer as a response object of OpenAI's.

Invariant: what the reply says of the request is what the request said, or the service's default.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from lightningrl.conversation.responses import output_items, response_id
from lightningrl.conversation.tools.responses import Form
from lightningrl.gateway.dialects.engine_reply import EngineReply, Usage, usage_of

_MESSAGE = msgspec.json.Decoder(dict[str, Any])
_DEFAULTS: dict[str, Any] = {
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "reasoning": {"effort": None, "summary": None},
    "safety_identifier": None,
    "store": True,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 1.0,
    "user": None,
}
"""Fields of the request that the reply repeats, and what they are where it does not say."""

_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
"""Finish reason of a chat completion -> why a response is incomplete."""


def response(
    request: Mapping[str, Any],
    reply: EngineReply,
    step_id: str,
    *,
    logprobs: bool,
    forms: Mapping[str, Form],
) -> dict[str, Any]:
    """The response to a request.

    Args:
        request: The request's fields.
        reply: The engine's answer; its first choice counts.
        step_id: Of the call.
        logprobs: Whether the agent gets the log-probs of its text.
        forms: How calls of tools that are no plain functions come back.

    Raises:
        ValueError: the engine's message is no message.
    """
    choice = reply.choices[0]
    reason = _INCOMPLETE.get(choice.finish_reason or "")
    status = "incomplete" if reason else "completed"
    try:
        message = _MESSAGE.decode(choice.message)
        entries = choice.logprob_entries() if logprobs else ()
        output = output_items(message, step_id, status=status, logprobs=entries, forms=forms)
    except (AttributeError, TypeError) as error:
        raise ValueError(f"its message is none: {error}") from error
    given = {name: request[name] for name in _DEFAULTS if request.get(name) is not None}
    return {
        "id": response_id(step_id),
        "object": "response",
        "created_at": reply.created,
        "completed_at": None if reason else reply.created,
        "status": status,
        "background": False,
        "error": None,
        "incomplete_details": {"reason": reason} if reason else None,
        "model": request["model"],
        "output": output,
        "service_tier": reply.service_tier or "default",
        "truncation": "disabled",
        **_DEFAULTS,
        **given,
        "usage": _usage(usage_of(reply)),
    }


def _usage(usage: Usage | None) -> dict[str, Any] | None:
    if usage is None:
        return None
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
