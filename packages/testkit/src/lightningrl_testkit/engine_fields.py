"""What the embedded engine and vLLM do with each field of a chat completion: one table, which a test asks of either.

Invariant: a row's request is answered by an engine, or refused with status 400, as the row says.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from enum import StrEnum
from typing import Any, NamedTuple


class Does(StrEnum):
    """What an engine does with a field."""

    SERVED = "served"
    IGNORED = "ignored"
    REFUSED = "refused"


class EngineField(NamedTuple):
    """One field at one value."""

    name: str
    value: Any
    embedded: Does
    vllm: Does
    note: str = ""


TOOL = {
    "type": "function",
    "function": {
        "name": "calculate",
        "parameters": {"type": "object", "properties": {"expression": {"type": "string"}}},
    },
}
_BY_NAME = {"type": "function", "function": {"name": "calculate"}}
_SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}
_OF_TOOLS = frozenset({"tools", "tool_choice", "parallel_tool_calls"})

_WORDS = "the embedded engine says it in words, and forces nothing"
_SERVED, _IGNORED, _REFUSED = Does.SERVED, Does.IGNORED, Does.REFUSED


def _both(does: Does, note: str, **fields: Any) -> list[EngineField]:
    return [EngineField(name, value, does, does, note) for name, value in fields.items()]


def _vllm_alone(note: str, **fields: Any) -> list[EngineField]:
    return [EngineField(name, value, _REFUSED, _SERVED, note) for name, value in fields.items()]


ENGINE_FIELDS: tuple[EngineField, ...] = (
    *_both(_SERVED, "", max_tokens=3, max_completion_tokens=3, temperature=0.5, top_p=0.9, top_k=5),
    *_both(_SERVED, "", seed=1, presence_penalty=0.5, frequency_penalty=0.5, n=2),
    *_both(_SERVED, "the text ends before it, the token ids do not", stop=["x"]),
    *_both(_REFUSED, "an empty text", stop=[""]),
    *_both(_SERVED, "", stop_token_ids=[1], include_stop_str_in_output=True, logprobs=True),
    *_both(_SERVED, "", return_token_ids=True, return_tokens_as_token_ids=True),
    *_both(_SERVED, "", tools=[TOOL], tool_choice="auto"),
    *_both(_SERVED, "no answer is read as a call", tool_choice="none"),
    *_both(_SERVED, _WORDS, tool_choice="required"),
    *_both(_SERVED, _WORDS, tool_choice=_BY_NAME),
    *_both(_SERVED, "of several calls the first alone is one", parallel_tool_calls=False),
    *_both(_SERVED, _WORDS, response_format=_SCHEMA),
    *_both(_SERVED, _WORDS, response_format={"type": "json_object"}),
    *_both(_SERVED, "variables of the chat template", chat_template_kwargs={"x": 1}),
    *_both(_SERVED, "a variable of the chat template", documents=[{"text": "a"}]),
    *_both(_IGNORED, "", user="u", store=True, metadata={"a": "b"}, service_tier="auto"),
    *_both(_IGNORED, "", safety_identifier="a", prompt_cache_key="a", verbosity="low", unheard_of=1),
    *_both(_IGNORED, "of the caching of prefixes", cache_salt="a"),
    *_both(_SERVED, "a variable of the chat template", reasoning_effort="low"),
    EngineField("include_reasoning", True, _IGNORED, _SERVED, "the embedded engine parses no reasoning"),
    EngineField("skip_special_tokens", False, _SERVED, _SERVED, "the embedded engine keeps them anyway"),
    EngineField("stream", True, _REFUSED, _SERVED, "the gateway never asks for it, and makes the stream itself"),
    *_vllm_alone("", min_p=0.1, repetition_penalty=1.1, top_logprobs=2),
    *_vllm_alone("its calls are not trained", logit_bias={"1": 1}, min_tokens=1, ignore_eos=True),
    *_vllm_alone("its calls are not trained", allowed_token_ids=[1], bad_words=["x"]),
    *_vllm_alone("its calls are not trained", structured_outputs={"regex": "a"}),
    *_vllm_alone("", truncate_prompt_tokens=1, echo=True, add_special_tokens=True),
    *_vllm_alone("", continue_final_message=True, add_generation_prompt=False),
    EngineField("guided_regex", "a", _REFUSED, _IGNORED, "an older name of `structured_outputs`"),
    EngineField("chat_template", "x", _REFUSED, _REFUSED, "the policy's own counts"),
)  # fmt: skip


def request_of(row: EngineField, model: str) -> dict[str, Any]:
    """A chat completion with the field, and with what it needs beside it."""
    said = [{"role": "user", "content": "1+1"}]
    body: dict[str, Any] = {"model": model, "messages": said, "max_tokens": 4}
    if row.name in _OF_TOOLS:
        body["tools"] = [TOOL]
    if row.name == "continue_final_message":
        body |= {"add_generation_prompt": False}
    if row.name == "top_logprobs":
        body["logprobs"] = True
    return body | {row.name: row.value}


def is_refused(url: str, row: EngineField, model: str) -> bool:
    """Whether an engine at `url` (without `/v1`) refuses a request with the field.

    Raises:
        urllib.error.HTTPError: it answers by another status than 200 and 400.
    """
    data = json.dumps(request_of(row, model)).encode()
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/chat/completions", data, headers)
    try:
        with urllib.request.urlopen(request) as answer:
            answer.read()
    except urllib.error.HTTPError as error:
        if error.code != 400:
            raise
        return True
    return False
