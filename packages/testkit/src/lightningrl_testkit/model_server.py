"""A scripted model server on a loopback port: OpenAI's chat completions with vLLM's training fields.

It stands for the engine wherever a test needs one: a script says what the model answers, and token
ids follow from the text alone, so that a test can write them down.

Invariant: ids are the UTF-8 bytes of the text plus one id per role and for the end of a message, so the
next prompt of a conversation begins with exactly the ids of the former prompt and its answer.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Self

import uvicorn

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

ROLES = {"system": 256, "developer": 256, "user": 257, "assistant": 258, "tool": 259}
"""The id that opens a message of each role."""
END = 260
"""The id that closes every message; the last id of every finished answer."""
TOOLS = 261
"""The id that opens the list of tools, before all messages."""

_PATIENCE_SECONDS = 30.0


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


@dataclass(frozen=True)
class Arrival:
    """A request as the server got it."""

    body: dict[str, Any]
    headers: dict[str, str]


def echo(request: dict[str, Any]) -> Answer:
    """The script that answers with the last message's text."""
    return Answer(_text(request["messages"][-1]))


def in_turn(*answers: str | Answer) -> Script:
    """The script whose answer depends on how often the assistant has spoken: 0 times, once, ...

    It looks at the request only, so that a call that is sent again is answered the same; after the
    last answer it stays with that.
    """

    def script(request: dict[str, Any]) -> Answer:
        turn = sum(message["role"] == "assistant" for message in request["messages"])
        answer = answers[min(turn, len(answers) - 1)]
        return Answer(answer) if isinstance(answer, str) else answer

    return script


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


class ModelServer:
    """`with ModelServer(script) as server:` serves at `server.url` from a thread of its own."""

    def __init__(self, script: Script = echo, *, version: int | None = None) -> None:
        """Make a server that is not running.

        Args:
            script: What the model answers.
            version: The weight version that each choice reports. `None`: it reports none.
        """
        self.script = script
        self.version = version
        self.arrivals: list[Arrival] = []
        """All requests, in order of arrival."""
        self.hangups = 0
        """Requests whose client hung up before the answer."""
        self._failures: list[int] = []
        self._changed = threading.Condition()
        self._unblocked = asyncio.Event()
        self._unblocked.set()
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/v1"
        """Base URL up to and including `/v1`."""
        config = uvicorn.Config(
            self._app,
            interface="asgi3",
            lifespan="off",
            ws="none",
            log_level="critical",
            proxy_headers=False,
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._loop = asyncio.new_event_loop()

    # -- life ----------------------------------------------------------------------------------

    def start(self) -> Self:
        """Begin to serve; connections made from now on are answered."""
        self._socket.listen(1024)
        self._thread.start()
        return self

    def stop(self) -> None:
        """Stop serving; calls under way are broken off."""
        self.unblock()
        self._server.should_exit = self._server.force_exit = True
        self._thread.join()
        self._socket.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _serve(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._server.serve(sockets=[self._socket]))

    # -- what tests do to it -------------------------------------------------------------------

    @property
    def calls(self) -> int:
        """Requests so far."""
        return len(self.arrivals)

    def fail_next(self, times: int, status: int = 503) -> None:
        """Answer the next `times` requests by an error; status 0 breaks the connection instead."""
        self._failures += [status] * times

    def block(self) -> None:
        """Let answers wait until `unblock`."""
        self._loop.call_soon_threadsafe(self._unblocked.clear)

    def unblock(self) -> None:
        """Let waiting answers go."""
        self._loop.call_soon_threadsafe(self._unblocked.set)

    async def arrived(self, calls: int) -> None:
        """Return when `calls` requests in all have arrived."""
        await self._when(lambda: self.calls >= calls, f"{calls} requests arrive")

    async def hung_up(self, times: int) -> None:
        """Return when the clients of `times` requests in all have hung up."""
        await self._when(lambda: self.hangups >= times, f"{times} clients hang up")

    async def _when(self, condition: Callable[[], bool], what: str) -> None:
        def wait() -> bool:
            with self._changed:
                return self._changed.wait_for(condition, _PATIENCE_SECONDS)

        if not await asyncio.to_thread(wait):
            raise TimeoutError(
                f"the model server did not see {what} within {_PATIENCE_SECONDS:g} s; it saw"
                f" {self.calls} requests and {self.hangups} hang-ups"
            )

    # -- serving -------------------------------------------------------------------------------

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await _body(receive)
        if not scope["path"].endswith("/chat/completions"):
            await _send_json(send, 404, _error(f"no such route: {scope['path']}"))
            return
        request = json.loads(body)
        headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"]}
        with self._changed:
            self.arrivals.append(Arrival(request, headers))
            self._changed.notify_all()
        if self._failures:
            status = self._failures.pop(0)
            answer = Answer("told to fail", status=status or 200, dies=status == 0)
        else:
            answer = self._scripted(request)
        if await self._outlasts(answer.delay_seconds, receive):
            await self._answer(request, answer, send)

    def _scripted(self, request: dict[str, Any]) -> Answer:
        try:
            return self.script(request)
        except Exception as error:  # noqa: BLE001 - the test is told by way of the agent
            return Answer(f"the script raised {error!r}", status=500)

    async def _outlasts(self, delay_seconds: float, receive: Receive) -> bool:
        """Wait as told; say whether the client is still there."""
        gone = asyncio.ensure_future(receive())
        due = asyncio.ensure_future(self._due(delay_seconds))
        await asyncio.wait({gone, due}, return_when=asyncio.FIRST_COMPLETED)
        there = due.done()
        for task in (gone, due):
            task.cancel()
        if not there:
            with self._changed:
                self.hangups += 1
                self._changed.notify_all()
        return there

    async def _due(self, delay_seconds: float) -> None:
        if delay_seconds:
            await asyncio.sleep(delay_seconds)
        await self._unblocked.wait()

    async def _answer(self, request: dict[str, Any], answer: Answer, send: Send) -> None:
        if answer.dies:
            length = [(b"content-type", b"application/json"), (b"content-length", b"1000")]
            await send({"type": "http.response.start", "status": 200, "headers": length})
            await send({"type": "http.response.body", "body": b'{"id":', "more_body": True})
            return  # uvicorn breaks the connection off
        if answer.status != 200:
            await _send_json(send, answer.status, _error(answer.content or "an error"))
            return
        await _send_json(send, 200, completion(request, answer, self.version))


def completion(request: dict[str, Any], answer: Answer, version: int | None) -> dict[str, Any]:
    """The whole response to `request`, as vLLM writes it with `logprobs` and `return_token_ids`."""
    count = request.get("n") or 1
    ids = answer_ids(answer)
    limit = request.get("max_tokens") or len(ids)
    if limit < len(ids):
        ids, answer = ids[:limit], replace(answer, content=_decode(ids[:limit]), tool_calls=())
        answer = replace(answer, finish_reason="length")
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
        "usage": {
            "prompt_tokens": len(prompt),
            "completion_tokens": count * len(ids),
            "total_tokens": len(prompt) + count * len(ids),
        },
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


async def _body(receive: Receive) -> bytes:
    parts: list[bytes] = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "scripted", "param": None, "code": "scripted"}}


async def _send_json(send: Send, status: int, value: Any) -> None:
    body = json.dumps(value).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
