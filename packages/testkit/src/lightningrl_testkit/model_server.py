"""A scripted model server on a loopback port: OpenAI's completions with vLLM's training fields.

It stands for the engine wherever a test needs one: a script says what the model answers, and token
ids follow from the text alone (`scripted`), so that a test can write them down.

Invariant: a request is answered as its script says, once the test lets it, or its client hung up.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import uvicorn

from lightningrl.machine.connections import KEEP_ALIVE_SECONDS
from lightningrl_testkit.scripted import (
    END,
    ROLES,
    TOOLS,
    Answer,
    Script,
    ToolCall,
    answer_ids,
    completion,
    echo,
    in_turn,
    logprob,
    prompt_ids,
    text_completion,
)
from lightningrl_testkit.streamed import events

__all__ = [
    "END",
    "ROLES",
    "TOOLS",
    "Answer",
    "Arrival",
    "ModelServer",
    "Script",
    "ToolCall",
    "answer_ids",
    "completion",
    "echo",
    "in_turn",
    "logprob",
    "prompt_ids",
]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_PATIENCE_SECONDS = 30.0


@dataclass(frozen=True)
class Arrival:
    """A request as the server got it."""

    body: dict[str, Any]
    headers: dict[str, str]


class ModelServer:
    """`with ModelServer(script) as server:` serves at `server.url` from a thread of its own."""

    def __init__(self, script: Script = echo, *, version: int | None = None, port: int = 0) -> None:
        """Make a server that is not running.

        Args:
            script: What the model answers.
            version: The weight version that each choice reports. `None`: it reports none.
            port: Where to serve, so that a server can come back; 0 takes a free one.
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
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", port))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/v1"
        """Base URL up to and including `/v1`."""
        config = uvicorn.Config(
            self._app,
            interface="asgi3",
            lifespan="off",
            ws="none",
            log_level="critical",
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
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

    async def arrived(self, calls: int, *, patience_seconds: float = _PATIENCE_SECONDS) -> None:
        """Return when `calls` requests in all have arrived."""
        what = f"{calls} requests arrive"
        await self._when(lambda: self.calls >= calls, what, patience_seconds)

    async def hung_up(self, times: int) -> None:
        """Return when the clients of `times` requests in all have hung up."""
        what = f"{times} clients hang up"
        await self._when(lambda: self.hangups >= times, what, _PATIENCE_SECONDS)

    async def _when(self, condition: Callable[[], bool], what: str, patience: float) -> None:
        def wait() -> bool:
            with self._changed:
                return self._changed.wait_for(condition, patience)

        if not await asyncio.to_thread(wait):
            raise TimeoutError(
                f"the model server did not see {what} within {patience:g} s; it saw"
                f" {self.calls} requests and {self.hangups} hang-ups"
            )

    # -- serving -------------------------------------------------------------------------------

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await _body(receive)
        if scope["path"] == "/tokenize":
            await self._count(json.loads(body), send)
            return
        if not scope["path"].endswith("/completions"):
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

    async def _count(self, request: dict[str, Any], send: Send) -> None:
        if self._failures:
            await _send_json(send, self._failures.pop(0), _error("told to fail"))
            return
        ids = prompt_ids(request["messages"], request.get("tools") or ())
        await _send_json(send, 200, {"count": len(ids), "tokens": ids})

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
        if "messages" not in request:
            await _send_json(send, 200, text_completion(request, answer, self.version))
            return
        whole = completion(request, answer, self.version)
        if request.get("stream"):
            wanted = (request.get("stream_options") or {}).get("include_usage", False)
            await _send_events(send, events(whole, with_usage=wanted))
        else:
            await _send_json(send, 200, whole)


async def _body(receive: Receive) -> bytes:
    parts: list[bytes] = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "scripted", "param": None, "code": "scripted"}}


async def _send_events(send: Send, parts: Iterable[bytes]) -> None:
    headers = [(b"content-type", b"text/event-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for part in parts:
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def _send_json(send: Send, status: int, value: Any) -> None:
    body = json.dumps(value).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
