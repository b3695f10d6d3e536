"""The engine behind the gateways that are compared: `python gateway_engine.py PORT SECONDS`.

It answers every chat completion after SECONDS with a fixed answer of the asked length, in vLLM's form,
token ids and log-probs included, and costs as little CPU as it can, so that the gateway is what is
measured.
"""

from __future__ import annotations

import asyncio
import random
import sys
from typing import Any

import httptools
import msgspec
import uvloop

PROMPT_TOKENS = {64: 256, 256: 1024}
"""Answer tokens (the request's `max_tokens`) -> prompt tokens: the two shapes of the benchmark."""

_VOCABULARY = 150_000
_BACKLOG = 8192


class _Asked(msgspec.Struct):
    max_tokens: int


_asked = msgspec.json.Decoder(_Asked)


def _completion(answer_tokens: int) -> bytes:
    """A whole chat completion, as vLLM writes it with `return_token_ids` and `logprobs`."""
    rng = random.Random(answer_tokens)
    prompt_ids = [rng.randrange(_VOCABULARY) for _ in range(PROMPT_TOKENS[answer_tokens])]
    token_ids = [rng.randrange(_VOCABULARY) for _ in range(answer_tokens)]
    content = [
        {
            "token": f"t{one}",
            "logprob": -rng.expovariate(2.0),
            "bytes": [116, 49],
            "top_logprobs": [],
        }
        for one in token_ids
    ]
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": " ".join(f"w{one % 997}" for one in token_ids)},
        "finish_reason": "stop",
        "token_ids": token_ids,
        "logprobs": {"content": content},
    }
    usage = {
        "prompt_tokens": len(prompt_ids),
        "completion_tokens": answer_tokens,
        "total_tokens": len(prompt_ids) + answer_tokens,
    }
    return msgspec.json.encode(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": "policy",
            "prompt_token_ids": prompt_ids,
            "choices": [choice],
            "usage": usage,
        }
    )


def _response(body: bytes) -> bytes:
    head = (
        f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


_HEALTHY = _response(b"{}")
_ANSWERS = {tokens: _response(_completion(tokens)) for tokens in PROMPT_TOKENS}


class _Connection(asyncio.Protocol):
    """One keep-alive connection; httptools calls its `on_*` methods."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._transport: Any = None
        self._parser: Any = httptools.HttpRequestParser(self)
        self._body = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self._body = b""

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        answer = _ANSWERS[_asked.decode(self._body).max_tokens] if self._body else _HEALTHY
        if self._seconds and self._body:
            asyncio.get_running_loop().call_later(self._seconds, self._write, answer)
        else:
            self._write(answer)

    def _write(self, answer: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(answer)


async def _serve(port: int, seconds: float) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: _Connection(seconds), "127.0.0.1", port, backlog=_BACKLOG
    )
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1]), float(sys.argv[2])))
