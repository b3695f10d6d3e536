"""The gateways that are compared, each in front of the same engine and asked the same.

A system starts its processes, makes the rollouts that its calls belong to, and builds whole HTTP
requests. LightningRL runs as `lightningrl serve` does by default: with keys, every call on disk before
it is answered. The peers keep calls in memory.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Protocol

import msgspec

from gateway_engine import PROMPT_TOKENS
from harness.load import closed_loop, request
from harness.results import OURS
from harness.servers import free_port, running
from lightningrl.gateway import GatewayClient
from lightningrl.schema import (
    Claim,
    Endpoint,
    Fork,
    Mode,
    NewRollout,
    Policy,
    Sampling,
    group_id,
    rollout_id,
)
from lightningrl.store import open_store
from store_systems import AgentLightning03, AgentLightning10

DIRECT = "direct"
_KEY = "the key of a benchmark"
_RUN = "bench"
_POLICY = "policy"
_HERE = Path(__file__).parent


def body(answer_tokens: int, *, stream: bool = False, number: int = 0) -> bytes:
    """A chat completion's request of one of the benchmark's shapes; those of other numbers ask otherwise."""
    asked = {
        "model": _POLICY,
        "messages": [
            {"role": "system", "content": f"You are helper {number}."},
            {"role": "user", "content": "p " * PROMPT_TOKENS[answer_tokens]},
        ],
        "max_tokens": answer_tokens,
    }
    return json.dumps(asked | {"stream": True} if stream else asked).encode()


def _post(path: str, content: bytes, headers: dict[str, str] | None = None) -> bytes:
    return request("POST", path, content, {"content-type": "application/json", **(headers or {})})


class System(Protocol):
    """One way to the engine."""

    name: str
    """As it stands in the results."""
    url: str
    pids: tuple[int, ...]
    """Its processes, whose CPU is its cost; empty: it has none."""

    async def prepare(self, calls_at_once: int) -> None:
        """Make as many rollouts as calls will be under way."""
        ...

    def call(self, client: int, answer_tokens: int, *, stream: bool = False) -> bytes:
        """A call by client number `client`."""
        ...


class Engine:
    """The engine itself, and the calls that go there directly."""

    name = DIRECT
    pids: tuple[int, ...] = ()

    def __init__(self, folder: Path, stack: ExitStack, seconds: float) -> None:
        """Start an engine that takes `seconds` for each call; it ends with `stack`."""
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        stack.enter_context(
            running(
                [sys.executable, str(_HERE / "gateway_engine.py"), str(port), str(seconds)],
                url=self.url,
                health="/healthz",
                log=folder / f"engine-{port}.log",
                environment=os.environ,
            )
        )

    async def prepare(self, calls_at_once: int) -> None:
        """See `System`."""

    def call(self, client: int, answer_tokens: int, *, stream: bool = False) -> bytes:
        """See `System`. The engine does not stream: a gateway asks it for whole answers."""
        return _post("/v1/chat/completions", body(answer_tokens))


class Lightning:
    """LightningRL's server, on a store in a file, with keys."""

    name = OURS

    def __init__(self, folder: Path, stack: ExitStack, engine: Engine) -> None:
        """Start the server; it ends with `stack`."""
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._engine = engine
        self._paths: list[tuple[str, str]] = []
        self._numbers = count()
        """Of its rollouts: none is made twice."""
        serve = [sys.executable, "-m", "lightningrl.cli", "serve", str(folder / "store.db")]
        pid = stack.enter_context(
            running(
                [*serve, "--port", str(port)],
                url=self.url,
                health="/healthz",
                log=folder / "server.log",
                environment={**os.environ, "LIGHTNINGRL_ADMIN_KEY": _KEY},
            )
        )
        self.pids = (pid,)

    def control(self) -> GatewayClient:
        """Policy control."""
        return GatewayClient(self.url, _KEY)

    async def prepare(self, calls_at_once: int) -> None:
        """See `System`."""
        endpoint = Endpoint(f"{self._engine.url}/v1")
        policy = Policy(name=_POLICY, run=_RUN, version=0, endpoints=(endpoint,))
        async with self.control() as control:
            await control.register(policy)
        claims = await self._claims([_rollout(next(self._numbers)) for _ in range(calls_at_once)])
        self._paths = [(_path(one), one.key) for one in claims]

    async def _claims(self, rollouts: Sequence[NewRollout]) -> list[Claim]:
        store = open_store(self.url, key=_KEY)
        await store.enqueue(rollouts)
        claims: list[Claim] = []
        while len(claims) < len(rollouts):
            claims += await store.claim("bench", run=_RUN, limit=500, lease_seconds=3600.0)
        await store.close()
        return claims

    def call(self, client: int, answer_tokens: int, *, stream: bool = False) -> bytes:
        """See `System`."""
        path, key = self._paths[client]
        return _post(path, body(answer_tokens, stream=stream), {"authorization": f"Bearer {key}"})

    async def forks(self, calls: int, answer_tokens: int, forks: int) -> list[list[bytes]]:
        """The requests of `forks` forks, of one attempt each that has made `calls` calls: all are answered by the record."""
        parents = await self._claims([_rollout(next(self._numbers)) for _ in range(forks)])
        bodies = [body(answer_tokens, number=one) for one in range(calls)]
        await closed_loop(self.url, [one for each in parents for one in _asked(each, bodies)], 16)
        branches = [
            msgspec.structs.replace(_rollout(next(self._numbers)), fork=Fork(one.attempt.id))
            for one in parents
        ]
        return [_asked(one, bodies) for one in await self._claims(branches)]


def _path(claim: Claim) -> str:
    return f"/rollouts/{claim.rollout.id}/attempts/{claim.attempt.id}/v1/chat/completions"


def _asked(claim: Claim, bodies: Sequence[bytes]) -> list[bytes]:
    return [_post(_path(claim), one, {"authorization": f"Bearer {claim.key}"}) for one in bodies]


def _rollout(number: int) -> NewRollout:
    group = group_id(_RUN, Mode.TRAIN, 1, f"task {number}")
    return NewRollout(
        id=rollout_id(group, 0),
        run=_RUN,
        mode=Mode.TRAIN,
        iteration=1,
        task_id=f"task {number}",
        group_id=group,
        member=0,
        task={},
        sampling=Sampling(),
        timeout_seconds=3600.0,
    )


class AgentLightning10Gateway:
    """Agent Lightning 1.0's proxy, in its server. It refuses to stream."""

    name = AgentLightning10.name

    def __init__(self, folder: Path, stack: ExitStack, engine: Engine) -> None:
        """Start the server; it ends with `stack`."""
        server = AgentLightning10(folder, stack)
        self.url, self.pids = server.url, (server.pid,)
        self._engine = engine
        self._rollouts: list[str] = []

    async def prepare(self, calls_at_once: int) -> None:
        """See `System`."""
        models = json.dumps([{"model": "model", "endpoint": f"{self._engine.url}/v1"}]).encode()
        rollouts = json.dumps([{"input": {}}] * calls_at_once).encode()
        await closed_loop(self.url, [_post("/api/models", models)], 1)
        made = await closed_loop(self.url, [_post("/api/rollouts", rollouts)], 1)
        self._rollouts = [one["rollout_id"] for one in json.loads(made.answers[0])]

    def call(self, client: int, answer_tokens: int, *, stream: bool = False) -> bytes:
        """See `System`."""
        rollout = self._rollouts[client]
        path = f"/proxy/rollout/{rollout}/attempt/0/mode/train/openai/v1/chat/completions"
        return _post(path, body(answer_tokens))


class AgentLightning03Gateway:
    """Agent Lightning 0.3's LLM proxy (LiteLLM), with the store that it writes spans to."""

    name = AgentLightning03.name

    def __init__(self, folder: Path, stack: ExitStack, engine: Engine) -> None:
        """Start store and proxy; they end with `stack`."""
        store = AgentLightning03(folder, stack)
        python = AgentLightning03.peer.environment() / "bin" / "python"
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._attempts = folder / "attempts.json"
        arguments = [store.url, str(port), f"{engine.url}/v1", str(self._attempts)]
        pid = stack.enter_context(
            running(
                [str(python), str(_HERE / "peer_llm_proxy.py"), *arguments],
                url=self.url,
                health="/health/liveliness",
                log=folder / "proxy.log",
                # Else its import asks the network for a list of prices.
                environment={**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
            )
        )
        self.pids = (store.pid, pid)
        self._paths: list[str] = []

    async def prepare(self, calls_at_once: int) -> None:
        """See `System`; the proxy's own process has made 64 rollouts."""
        while not self._attempts.exists():  # noqa: ASYNC110 - another process writes it
            await asyncio.sleep(0.05)
        self._paths = [
            f"/rollout/{rollout}/attempt/{attempt}/v1/chat/completions"
            for rollout, attempt in json.loads(self._attempts.read_text())
        ]

    def call(self, client: int, answer_tokens: int, *, stream: bool = False) -> bytes:
        """See `System`."""
        return _post(self._paths[client % len(self._paths)], body(answer_tokens))
