"""What a scripted model says, and the ids of it: pure functions of a request.

Invariant: ids are the UTF-8 bytes of the text plus one id per role and for the end of a message, so the
next prompt of a conversation begins with exactly the ids of the former prompt and its answer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

ROLES = {"system": 256, "developer": 256, "user": 257, "assistant": 258, "tool": 259}
"""The id that opens a message of each role."""
END = 260
"""The id that closes every message; the last id of every finished answer."""
TOOLS = 261
"""The id that opens the list of tools, before all messages."""


@dataclass(frozen=True)
class ToolCall:
    """A tool call in an answer."""

    id: str
    name: str
    arguments: str
    """JSON."""


@dataclass(frozen=True)
class Answer:
    """What the scripted model does with one request."""

    content: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: str | None = None
    """`None`: `tool_calls` where there are some, else `stop`."""
    status: int = 200
    """Another status is an error answer with `content` as its message."""
    dies: bool = False
    """Whether the connection breaks in the middle of the answer."""
    delay_seconds: float = 0.0
    """How long the model takes."""
    extra: dict[str, Any] = field(default_factory=dict[str, Any])
    """Fields put over those of each choice; a value of `None` stays, as engines write `null`."""


Script = Callable[[dict[str, Any]], Answer]
"""From a request's JSON to what the model does."""


def echo(request: dict[str, Any]) -> Answer:
    """The script that answers with the last message's text."""
    return Answer(_text(_messages(request)[-1]))


def in_turn(*answers: str | Answer) -> Script:
    """The script whose answer depends on how often the assistant has spoken: 0 times, once, ...

    It looks at the request only, so that a call that is sent again is answered the same; after the
    last answer it stays with that.
    """

    def script(request: dict[str, Any]) -> Answer:
        turn = sum(message["role"] == "assistant" for message in _messages(request))
        answer = answers[min(turn, len(answers) - 1)]
        return Answer(answer) if isinstance(answer, str) else answer

    return script


def _messages(request: dict[str, Any]) -> list[dict[str, Any]]:
    """The conversation; of a plain completion its prompt."""
    if "messages" in request:
        return request["messages"]
    return [{"role": "user", "content": _decode(_plain_ids(request["prompt"]))}]


def _plain_ids(prompt: Any) -> list[int]:
    """The ids of a prompt that no template renders."""
    if isinstance(prompt, str):
        return list(prompt.encode())
    return prompt if prompt and isinstance(prompt[0], int) else _plain_ids(prompt[0])


def prompt_ids(messages: Sequence[dict[str, Any]], tools: Sequence[Any] = ()) -> list[int]:
    """The ids of a prompt, the id that opens the answer included."""
    ids = [TOOLS, *_canonical(list(tools)), END] if tools else []
    for message in messages:
        ids += [ROLES[message["role"]], *_message_bytes(message), END]
    return [*ids, ROLES["assistant"]]


def answer_ids(answer: Answer) -> list[int]:
    """The ids of a finished answer, `END` included."""
    return [*_message_bytes(_message(answer)), END]


def logprob(token_id: int, position: int) -> float:
    """The log-prob of an id at a position of the answer; exact in float32."""
    return -(1 + (token_id + position) % 64) / 64


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _text(message: dict[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content)
    return content or ""


def _message_bytes(message: dict[str, Any]) -> bytes:
    calls = [call["function"] for call in message.get("tool_calls") or []]
    return _text(message).encode() + b"".join(_canonical(call) for call in calls)


def _decode(ids: Sequence[int]) -> str:
    return bytes(one for one in ids if one < min(ROLES.values())).decode(errors="replace")


def _message(answer: Answer) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": answer.content}
    if answer.tool_calls:
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in answer.tool_calls
        ]
    return message


def _cut(request: dict[str, Any], answer: Answer) -> tuple[list[int], Answer]:
    """The answer and its ids, at most `max_tokens` of them."""
    ids = answer_ids(answer)
    limit = request.get("max_tokens") or len(ids)
    if limit >= len(ids):
        return ids, answer
    text = _decode(ids[:limit])
    return ids[:limit], replace(answer, content=text, tool_calls=(), finish_reason="length")


def text_completion(request: dict[str, Any], answer: Answer, version: int | None) -> dict[str, Any]:
    """The whole response to a plain completion, as vLLM writes it."""
    count = request.get("n") or 1
    ids, answer = _cut(request, answer)
    chat = _choice({**request, "logprobs": True}, answer, ids, version)
    entries = chat["logprobs"]["content"]
    prompt = _plain_ids(request["prompt"])
    asked = request.get("return_token_ids")
    choice = {
        "text": answer.content or "",
        "logprobs": {
            "text_offset": list(range(len(ids))),
            "token_logprobs": [one["logprob"] for one in entries],
            "tokens": [one["token"] for one in entries],
            "top_logprobs": [None] * len(ids),
        }
        if request.get("logprobs") is not None
        else None,
        "finish_reason": chat["finish_reason"],
        "stop_reason": None,
        "token_ids": chat["token_ids"],
        "prompt_token_ids": prompt if asked else None,
        **{name: chat[name] for name in ("weight_versions",) if name in chat},
        **answer.extra,
    }
    return {
        "id": "cmpl-engine",
        "object": "text_completion",
        "created": 1_700_000_000,
        "model": request["model"],
        "choices": [{"index": index, **choice} for index in range(count)],
        "service_tier": None,
        "system_fingerprint": None,
        "usage": _usage(len(prompt), count * len(ids)),
        "kv_transfer_params": None,
    }


def _usage(prompt: int, sampled: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": sampled,
        "total_tokens": prompt + sampled,
    }


def completion(request: dict[str, Any], answer: Answer, version: int | None) -> dict[str, Any]:
    """The whole response to `request`, as vLLM writes it with `logprobs` and `return_token_ids`."""
    count = request.get("n") or 1
    ids, answer = _cut(request, answer)
    choice = _choice(request, answer, ids, version)
    prompt = prompt_ids(request["messages"], request.get("tools") or ())
    return {
        "id": "chatcmpl-engine",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": request["model"],
        "choices": [{"index": index, **choice} for index in range(count)],
        "service_tier": None,
        "system_fingerprint": None,
        "usage": _usage(len(prompt), count * len(ids)),
        "prompt_logprobs": None,
        "prompt_token_ids": prompt if request.get("return_token_ids") else None,
        "kv_transfer_params": None,
    }


def _choice(
    request: dict[str, Any],
    answer: Answer,
    ids: list[int],
    version: int | None,
) -> dict[str, Any]:
    entries = [
        {"token": f"<{one}>", "logprob": logprob(one, at), "bytes": None, "top_logprobs": []}
        for at, one in enumerate(ids)
    ]
    choice: dict[str, Any] = {
        "message": _message(answer),
        "logprobs": {"content": entries} if request.get("logprobs") else None,
        "finish_reason": answer.finish_reason or ("tool_calls" if answer.tool_calls else "stop"),
        "stop_reason": None,
        "token_ids": ids if request.get("return_token_ids") else None,
    }
    if version is not None:
        choice["weight_versions"] = [{"version": str(version), "start": 0, "end": len(ids)}]
    return {**choice, **answer.extra}
