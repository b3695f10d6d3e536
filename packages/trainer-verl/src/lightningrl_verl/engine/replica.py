"""One `torch` engine as a process of its own, told by its parent which weights to serve.

`python -m lightningrl_verl.engine.replica SETTINGS`, with `ReplicaSettings` as JSON. Beside OpenAI's routes it
has two for the parent alone, by key: take weights from a file, and score given tokens. Invariant: it ends
with its parent, and when its engine has died.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
from safetensors.torch import load_file
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from lightningrl.machine.shutdown import stop_with_parent
from lightningrl_verl.engine.errors import EngineError
from lightningrl_verl.engine.load import EngineSettings, load_engine
from lightningrl_verl.engine.server import serve_engine
from lightningrl_verl.engine.torch_engine import TorchEngine
from lightningrl_verl.machine.environment import prepare_process

KEY = "LIGHTNINGRL_ENGINE_KEY"
"""Environment variable with the parent's key."""

_ALIVE_SECONDS = 1.0
"""How often the engine is asked whether it still works."""


class ReplicaSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a replica is started with."""

    model: str
    """Hugging Face folder."""
    engine: EngineSettings
    name: str
    """The only model name that requests may give."""
    tool_parser: str
    version: int
    """Of the folder's weights."""
    newer: tuple[str, int] | None
    """File of weights to serve in their place, and their version."""
    port: int
    """0: any free one, which it says on its standard output."""
    parent_fd: int
    """Pipe whose closing ends it."""


class TakeWeights(msgspec.Struct, frozen=True):
    """Body of `POST /replica/weights`; answered when they are in use."""

    path: str
    """A `.safetensors` file of all parameters."""
    version: int


class Score(msgspec.Struct, frozen=True):
    """Body of `POST /replica/score`; answered with the log-probs of `token_ids`, as `TorchEngine.score`."""

    prompt_ids: list[int]
    token_ids: list[int]


class Digest(msgspec.Struct, frozen=True):
    """Body of `POST /replica/digest`; answered as `TorchEngine.digest`."""

    names: list[str]


async def serve(settings: ReplicaSettings, key: str) -> None:
    """Serve until the parent ends, or SIGTERM.

    Raises:
        EngineError: the engine died.
    """
    engine = load_engine(Path(settings.model), settings.engine, settings.version)
    engine.start()
    if settings.newer is not None:
        take(engine, *settings.newer)
    server = serve_engine(
        engine,
        model_name=settings.name,
        parser=settings.tool_parser,
        port=settings.port,
        routes=_routes(engine, key),
    )
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    stop_with_parent(loop, settings.parent_fd, stop.set)
    print(f"serving {settings.name} at {server.url}", flush=True)  # noqa: T201 - the parent reads it
    while not stop.is_set():
        engine.check_alive()
        try:
            await asyncio.wait_for(stop.wait(), _ALIVE_SECONDS)
        except TimeoutError:
            continue
    server.close()
    engine.close()


def take(engine: TorchEngine, path: str, version: int) -> None:
    """Swap the weights of a file in.

    Raises:
        WeightSwapError: names, shapes or the version do not fit.
    """
    engine.swap_weights(load_file(path).items(), version)


def _routes(engine: TorchEngine, key: str) -> list[Route]:
    async def take_weights(request: Request) -> Any:
        body = msgspec.json.decode(await request.body(), type=TakeWeights)
        await asyncio.to_thread(take, engine, body.path, body.version)

    async def score(request: Request) -> Any:
        body = msgspec.json.decode(await request.body(), type=Score)
        return await asyncio.to_thread(engine.score, body.prompt_ids, body.token_ids)

    async def digest(request: Request) -> Any:
        body = msgspec.json.decode(await request.body(), type=Digest)
        return await asyncio.to_thread(engine.digest, body.names)

    def guarded(answer: Callable[[Request], Awaitable[Any]]) -> Callable[[Request], Any]:
        async def respond(request: Request) -> Response:
            given = request.headers.get("authorization", "")
            if not secrets.compare_digest(given.encode(), f"Bearer {key}".encode()):
                return Response("for the trainer alone", status_code=403)
            try:
                return Response(msgspec.json.encode(await answer(request)))
            except EngineError as error:
                return Response(str(error), status_code=409)

        return respond

    return [
        Route("/replica/weights", guarded(take_weights), methods=["POST"]),
        Route("/replica/score", guarded(score), methods=["POST"]),
        Route("/replica/digest", guarded(digest), methods=["POST"]),
    ]


if __name__ == "__main__":
    prepare_process()
    asyncio.run(serve(msgspec.json.decode(sys.argv[1], type=ReplicaSettings), os.environ[KEY]))
