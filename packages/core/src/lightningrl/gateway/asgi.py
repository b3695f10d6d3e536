"""ASGI in small pieces: reading a body, sending an answer, refusing in OpenAI's error format.

Invariant: whatever the gateway refuses, the agent's client reads `error.message`, which says what to
do, and is told by `x-should-retry` whether trying again can help.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, NamedTuple

import msgspec

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = dict[bytes, bytes]
"""Lower-case name -> value; of a repeated header the last counts."""

JSON = b"application/json"
EVENT_STREAM = b"text/event-stream; charset=utf-8"

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
}
_ENCODER = msgspec.json.Encoder()


class ClientGone(Exception):
    """The client hung up before it was answered."""


class Answer(NamedTuple):
    """A whole HTTP response."""

    status: int
    body: bytes
    content_type: bytes = JSON
    headers: tuple[tuple[bytes, bytes], ...] = ()


CONTEXT_EXCEEDED = "context_length_exceeded"
"""Code of the refusal of a prompt that the model's context has no room for."""


class Refusal(Exception):
    """A request that is answered by an error."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.retry_after = retry_after
        """Seconds after which trying again may help. `None`: it won't."""
        self.recorded = False
        """Whether the record of a call tells of it."""

    def answer(self, write: Callable[[Refusal], bytes] | None = None) -> Answer:
        """The refusal as an HTTP response, its body as `write` has it; `None`: OpenAI's format."""
        headers = [(b"x-should-retry", b"false" if self.retry_after is None else b"true")]
        if self.retry_after is not None:
            headers.append((b"retry-after", str(max(1, round(self.retry_after))).encode()))
        body = self.body() if write is None else write(self)
        return Answer(self.status, body, headers=tuple(headers))

    def body(self) -> bytes:
        """The refusal in OpenAI's error format."""
        return error_body(self.status, self.message, self.code, self.param)


def error_body(status: int, message: str, code: str, param: str | None = None) -> bytes:
    """An error in OpenAI's format."""
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return to_json({"error": {"message": message, "type": kind, "param": param, "code": code}})


def to_json(value: Any) -> bytes:
    """`value` as compact JSON."""
    return _ENCODER.encode(value)


async def read_body(receive: Receive, headers: Headers, limit: int) -> bytes:
    """The whole request body.

    Raises:
        Refusal: 413, the body is longer than `limit` bytes.
        ClientGone: the client hung up in the middle of it.
    """
    declared = headers.get(b"content-length", b"0")
    if declared.isdigit() and int(declared) > limit:
        raise _too_long(limit)
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        part: bytes = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise _too_long(limit)
        parts.append(part)
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


def _too_long(limit: int) -> Refusal:
    return Refusal(
        413,
        "body_too_long",
        f"the request body is longer than {limit} bytes, the most that this gateway accepts; "
        "send less, or raise LIGHTNINGRL_GATEWAY_BODY_BYTES at the server",
    )


async def send_answer(send: Send, answer: Answer) -> None:
    """Send `answer` as the response."""
    headers = [
        (b"content-type", answer.content_type),
        (b"content-length", str(len(answer.body)).encode()),
        *answer.headers,
    ]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})
