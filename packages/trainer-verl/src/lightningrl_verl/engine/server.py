"""An OpenAI-compatible HTTP server over a `TorchEngine`, on a thread and event loop of its own.

Invariant: a request that its client gave up on holds no slot; a dead engine answers 503, never hangs.
"""

import asyncio
import functools
import socket
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, TypeVar

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from lightningrl.machine.connections import KEEP_ALIVE_SECONDS
from lightningrl_verl.engine.chat import (
    BadRequestError,
    ReplyWriter,
    SampledRequest,
    read_request,
    sampling_of,
)
from lightningrl_verl.engine.completions import completion_reply, plain_ids, read_completion
from lightningrl_verl.engine.errors import (
    EngineAsleepError,
    EngineClosedError,
    EngineDiedError,
    EngineError,
    PromptTooLongError,
)
from lightningrl_verl.engine.parsers import ToolParser, tool_parser
from lightningrl_verl.engine.prompts import PromptRenderer
from lightningrl_verl.engine.sampling import SamplingParams
from lightningrl_verl.engine.scheduler import Completion
from lightningrl_verl.engine.torch_engine import TorchEngine

T = TypeVar("T")

_CLIENT_CLOSED_REQUEST = 499
"""Nobody reads it; it keeps an aborted request apart in logs (nginx's number)."""


class EngineServer:
    """A running server; `close` stops it and leaves the engine as it is."""

    def __init__(self, app: Starlette, listener: socket.socket) -> None:
        """Starts serving `app` on a listening socket, and returns once it accepts connections."""
        host, port = listener.getsockname()[:2]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        """Without a slash at its end; the API is below `/v1`."""
        config = uvicorn.Config(
            app,
            loop="uvloop" if find_spec("uvloop") else "asyncio",
            http="httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=5,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, args=([listener],), name="torch-engine-http", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stops accepting, lets running requests end for up to five seconds, and returns."""
        self._server.should_exit = True
        self._thread.join()


def serve_engine(
    engine: TorchEngine,
    *,
    model_name: str,
    parser: ToolParser | str,
    host: str = "127.0.0.1",
    port: int = 0,
    routes: Sequence[Route] = (),
) -> EngineServer:
    """Serves a started engine.

    Args:
        engine: Stays the caller's to close.
        model_name: The only model name that requests may give.
        parser: How the model writes tool calls, or the name of a shipped parser.
        host: The address to listen on.
        port: 0 = any free one; see `EngineServer.url`.
        routes: Further ones.

    Raises:
        OSError: The address cannot be bound.
        UnknownToolParserError: No parser has that name.
    """
    chosen = tool_parser(parser) if isinstance(parser, str) else parser
    app = engine_app(engine, model_name=model_name, parser=chosen)
    app.router.routes.extend(routes)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Listening before the thread starts: a client may connect as soon as this function returns.
    listener = socket.create_server((host, port), family=family, backlog=2048)
    return EngineServer(app, listener)


def engine_app(engine: TorchEngine, *, model_name: str, parser: ToolParser) -> Starlette:
    """The ASGI app alone; arguments as of `serve_engine`."""
    routes = _Routes(engine, model_name, parser)
    return Starlette(
        routes=[
            Route("/v1/chat/completions", routes.chat, methods=["POST"]),
            Route("/v1/completions", routes.completions, methods=["POST"]),
            Route("/tokenize", routes.tokenize, methods=["POST"]),
            Route("/v1/models", routes.models),
            Route("/health", routes.health),
            Route("/stats", routes.stats),
        ]
    )


class _Routes:
    def __init__(self, engine: TorchEngine, model_name: str, parser: ToolParser) -> None:
        self._engine = engine
        self._model_name = model_name
        self._renderer = PromptRenderer(engine.tokenizer)
        self._writer = ReplyWriter(
            model_name=model_name,
            parser=parser,
            decode=engine.text_of,
            token_text=functools.cache(lambda token: engine.text_of([token])),
            eos_token_ids=engine.eos_token_ids,
        )

    async def chat(self, request: Request) -> Response:
        """`POST /v1/chat/completions`."""
        return await self._respond(request, self._chat_reply)

    async def completions(self, request: Request) -> Response:
        """`POST /v1/completions`."""
        return await self._respond(request, self._completion_reply)

    async def tokenize(self, request: Request) -> Response:
        """`POST /tokenize`: the prompt of a chat request (vLLM)."""
        return await self._respond(request, self._tokenized)

    async def _respond(
        self, request: Request, answer: Callable[[bytes], Coroutine[Any, Any, Mapping[str, Any]]]
    ) -> Response:
        try:
            body = await request.body()
            reply = await _unless_disconnected(request, answer(body))
        except BadRequestError as error:
            return _error(error.status, error.message, param=error.param, code=error.code)
        except PromptTooLongError as error:
            return _error(400, str(error), param="messages", code="context_length_exceeded")
        except (EngineDiedError, EngineClosedError, EngineAsleepError) as error:
            return _error(503, str(error), code="engine_unavailable")
        except EngineError as error:
            return _error(500, str(error), code="engine_error")
        return Response(status_code=_CLIENT_CLOSED_REQUEST) if reply is None else _json(reply)

    async def _chat_reply(self, body: bytes) -> Mapping[str, Any]:
        chat = read_request(body)
        params = self._sampling(chat)
        prompt_ids, tools = self._renderer.render(chat)
        completions = await self._sample(prompt_ids, params)
        return self._writer.reply(chat, prompt_ids, tools, completions)

    async def _tokenized(self, body: bytes) -> Mapping[str, Any]:
        chat = read_request(body)
        self._sampling(chat)
        ids, _ = self._renderer.render(chat)
        return {"count": len(ids), "max_model_len": self._engine.max_model_len, "tokens": ids}

    async def _completion_reply(self, body: bytes) -> Mapping[str, Any]:
        plain = read_completion(body)
        params = self._sampling(plain)
        prompt_ids = plain_ids(plain, self._engine.tokenizer)
        completions = await self._sample(prompt_ids, params)
        scored = None
        if plain.prompt_logprobs is not None:
            scored = await asyncio.to_thread(self._engine.score, prompt_ids[:1], prompt_ids[1:])
        return completion_reply(self._writer, plain, prompt_ids, completions, scored)

    def _sampling(self, request: SampledRequest) -> list[SamplingParams]:
        if request.model != self._model_name:
            raise BadRequestError(
                f"model {request.model!r} does not exist; this engine serves {self._model_name!r}",
                param="model",
                code="model_not_found",
                status=404,
            )
        return sampling_of(request)

    async def _sample(
        self, prompt_ids: list[int], params: list[SamplingParams]
    ) -> list[Completion]:
        tasks = [asyncio.ensure_future(self._engine.generate(prompt_ids, p)) for p in params]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:  # one that failed leaves nobody to wait for the others
                task.cancel()

    async def models(self, request: Request) -> Response:
        """`GET /v1/models`."""
        del request
        model = {
            "id": self._model_name,
            "object": "model",
            "created": 0,
            "owned_by": "lightningrl",
            "max_model_len": self._engine.max_model_len,
        }
        return _json({"object": "list", "data": [model]})

    async def health(self, request: Request) -> Response:
        """`GET /health`: 200, or 503 with the reason."""
        del request
        try:
            self._engine.check_alive()
        except EngineError as error:
            return _error(503, str(error), code="engine_unavailable")
        return Response()

    async def stats(self, request: Request) -> Response:
        """`GET /stats`: `EngineStats` as JSON."""
        del request
        return _json(self._engine.stats())


async def _unless_disconnected(request: Request, work: Coroutine[Any, Any, T]) -> T | None:
    """Awaits `work`; cancels it and returns None as soon as the client hangs up."""
    answering = asyncio.ensure_future(work)
    # The body is read, so all that can still arrive is the disconnect.
    leaving = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
        return answering.result() if answering.done() else None
    finally:
        leaving.cancel()
        answering.cancel()


_ENCODER = msgspec.json.Encoder()


def _json(body: object, status: int = 200) -> Response:
    return Response(_ENCODER.encode(body), status_code=status, media_type="application/json")


def _error(
    status: int, message: str, *, param: str | None = None, code: str | None = None
) -> Response:
    kind = "invalid_request_error" if status < 500 else "server_error"
    body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    return _json(body, status)
