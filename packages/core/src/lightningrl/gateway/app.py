"""The gateway as one ASGI application: routing, the outermost error boundary, start and end.

Invariant: every request gets exactly one answer in OpenAI's format, unless its client hung up.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from lightningrl.conversation.replaying import Path
from lightningrl.errors import (
    AuthError,
    ConfigError,
    Conflict,
    LightningError,
    NotFound,
    StaleAttempt,
    StoreUnavailable,
)
from lightningrl.gateway.asgi import (
    Answer,
    ClientGone,
    Headers,
    Receive,
    Refusal,
    Scope,
    Send,
    read_body,
    to_json,
)
from lightningrl.gateway.calls import Calls, agent_in
from lightningrl.gateway.control import CONTROL_PREFIX
from lightningrl.gateway.control_routes import ControlRoutes
from lightningrl.gateway.counting import COUNTED, Counting
from lightningrl.gateway.dialects import SPOKEN, models
from lightningrl.gateway.dialects.anthropic import ANTHROPIC
from lightningrl.gateway.dialects.base import Spoken
from lightningrl.gateway.identity import AgentRoute, Contexts, Identifier, agent_route, shown_path
from lightningrl.gateway.limits import GatewayLimits
from lightningrl.gateway.metrics import CONTENT_TYPE, Metrics
from lightningrl.gateway.observe import Observer
from lightningrl.gateway.policies import Policies
from lightningrl.gateway.refusals import Refusals
from lightningrl.gateway.replicas import Replicas
from lightningrl.gateway.rewards import post_reward
from lightningrl.gateway.speaking import Speaker
from lightningrl.gateway.sync import closing
from lightningrl.gateway.unknown_fields import UnknownFields
from lightningrl.gateway.upstream import Upstream
from lightningrl.keys import OPEN, AccessKeys
from lightningrl.machine.clock import Clock
from lightningrl.store.base import Store

_LOG = logging.getLogger(__name__)

METRICS_PATH = "/metrics"
REPLAYING = "replaying"
"""Route that says whether the effects of the answer that an agent got last are done already."""

SERVED_ROUTES = (
    *(f"POST /v1/{route}" for route in (*SPOKEN, *COUNTED)),
    "POST /v1/rewards",
    "GET /v1/models and /v1/models/{name}",
    f"GET /v1/{REPLAYING}",
    "the same below /rollouts/{rollout}/attempts/{attempt} and /keys/{attempt key}",
    f"{CONTROL_PREFIX}/status and {CONTROL_PREFIX}/policies/{{run}}/{{name}}",
)

_STATUS: tuple[tuple[type[LightningError], int], ...] = (
    (ConfigError, 400),
    (AuthError, 401),
    (NotFound, 404),
    (Conflict, 409),
    (StaleAttempt, 409),
    (StoreUnavailable, 503),
)


class Gateway:
    """Answers agents' model calls and records them; see the package's docstring for the routes."""

    def __init__(
        self,
        store: Store,
        *,
        clock: Clock,
        limits: GatewayLimits | None = None,
        require_keys: bool = True,
        keys: AccessKeys = OPEN,
        observers: Sequence[Observer] = (),
    ) -> None:
        """Make a gateway that is not started.

        Args:
            store: Where calls and policies are kept.
            clock: Where the time comes from.
            limits: Bounds; `None` means the defaults.
            require_keys: Whether a call needs an attempt key even where its URL names the attempt.
                Only a server bound to the loopback address may say `False`.
            keys: Whose admin keys policy control and `/metrics` ask for.
            observers: Who else is told of recorded calls.
        """
        self._limits = limits or GatewayLimits()
        self._store = store
        self._clock = clock
        self._require_keys = require_keys
        self._contexts = Contexts(store, clock, self._limits)
        self._policies = Policies(store, self._contexts)
        self._replicas = Replicas(store, self._policies) if store.shared else None
        self._policies.others = self._replicas
        self._upstream = Upstream(clock, self._limits)
        self._metrics = Metrics(self._policies, self._upstream.health)
        self._calls = Calls(
            store,
            clock,
            self._limits,
            policies=self._policies,
            upstream=self._upstream,
            unknown_fields=UnknownFields(store, clock, self._metrics),
            observers=(self._metrics, *observers),
        )
        self._refusals = Refusals(store, clock)
        self._counting = Counting(self._policies, self._upstream, self._calls.recollection)
        self._control = ControlRoutes(self._policies, self._upstream.health, keys, self._refusals)
        self._identifier: Identifier | None = None
        self._closing = False
        self._requests = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def unidentified(self) -> dict[str, int]:
        """Origin -> model calls since the start that nothing showed to be of any attempt: they were refused."""
        return dict(self._refusals.unidentified)

    async def start(self) -> None:
        """Read the secret and the policies from the store."""
        self._identifier = Identifier(
            await self._store.secret(),
            self._contexts,
            self._clock,
            require_keys=self._require_keys,
        )
        if self._replicas is None:
            await self._policies.load()
        else:
            await self._replicas.start()
        self._upstream.start()

    async def close(self) -> None:
        """Refuse new calls, let running ones finish for `close_seconds`, stop the rest.

        Those whose engine can't be reached are not tried for long.
        """
        self._closing = True
        self._upstream.end_retries()
        for served in self._policies:
            served.gate.close()
        try:
            async with asyncio.timeout(self._limits.close_seconds):
                await self._idle.wait()
        except TimeoutError:
            for served in self._policies:
                await served.gate.drain(0.0)  # stopped calls meet a closed gate: answered 503
            await self._idle.wait()
        await self._upstream.close()
        if self._replicas is not None:
            await self._replicas.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request."""
        if scope["type"] != "http":
            raise RuntimeError(f"the gateway answers http, not {scope['type']!r}")
        speaker = Speaker(send, self._limits)
        self._requests += 1
        self._idle.clear()
        try:
            await speaker.answer(await self._guarded(scope, receive, speaker))
        finally:
            speaker.stop()
            self._requests -= 1
            if not self._requests:
                self._idle.set()

    async def _guarded(self, scope: Scope, receive: Receive, speaker: Speaker) -> Answer | None:
        """The answer, whatever happens. `None`: nobody is left to be answered."""
        try:
            return await self._routed(scope, receive, speaker)
        except ClientGone:
            return None
        except Refusal as refused:
            refusal = refused
        except LightningError as error:
            refusal = refusal_of(error)
        except Exception:  # noqa: BLE001 - the outermost boundary: agents get an answer
            _LOG.exception("%s %s failed", scope["method"], shown_path(raw_path(scope)))
            refusal = Refusal(500, "gateway_failed", "the gateway failed; its log says why")
        self._metrics.refused(refusal.code)
        return refusal.answer(error_format(scope))

    async def _routed(self, scope: Scope, receive: Receive, speaker: Speaker) -> Answer:
        method: str = scope["method"]
        path = raw_path(scope)
        headers: Headers = dict(scope["headers"])
        if path.startswith(CONTROL_PREFIX + "/"):
            body = await read_body(receive, headers, self._limits.body_bytes)
            return await self._control.answer(method, path[len(CONTROL_PREFIX) :], headers, body)
        if (method, path) == ("GET", METRICS_PATH):
            self._control.check_key(headers)
            return Answer(200, self._metrics.text(), CONTENT_TYPE)
        route = agent_route(path)
        if route is None:
            raise _unserved(method, path)
        if method == "POST" and route.rest in SPOKEN:
            return await self._call(SPOKEN[route.rest], route, headers, receive, speaker)
        if method == "POST" and route.rest in COUNTED:
            return await self._count(route, headers, receive)
        if method == "POST" and route.rest == "rewards":
            return await self._reward(route, headers, receive)
        if method == "GET" and route.rest == REPLAYING:
            return await self._replaying(route, headers)
        if method == "GET" and route.rest.partition("/")[0] == models.ROUTE:
            return await self._models(route, headers)
        if method == "GET" and b"upgrade" in headers and route.rest in SPOKEN:
            raise no_websockets()
        raise await self._unserved(method, path, route, headers)

    async def _reward(self, route: AgentRoute, headers: Headers, receive: Receive) -> Answer:
        context = await self._identified().identify(route, headers)
        body = await read_body(receive, headers, self._limits.body_bytes)
        return await post_reward(self._store, self._clock, context, body)

    async def _call(
        self,
        spoken: Spoken,
        route: AgentRoute,
        headers: Headers,
        receive: Receive,
        speaker: Speaker,
    ) -> Answer:
        if self._closing:
            raise closing()
        try:
            context = await self._identified().identify(route, headers)
        except Refusal as refusal:
            self._refusals.count(refusal)
            raise
        try:
            body = await read_body(receive, headers, self._limits.body_bytes)
            return await self._calls.answer(spoken, context, headers, body, receive, speaker)
        except Refusal as refusal:
            await self._refusals.tell(context, refusal)
            raise

    async def _unserved(
        self, method: str, path: str, route: AgentRoute, headers: Headers
    ) -> Refusal:
        """The refusal of an agent's request of a kind that is not served, such as embeddings."""
        refusal = _unserved(method, path if route.attempt is None else f"/v1/{route.rest}")
        try:
            context = await self._identified().identify(route, headers)
        except Refusal:
            return refusal  # whose it is does not matter: nobody's would be served
        await self._refusals.tell(context, refusal)
        return refusal

    async def _count(self, route: AgentRoute, headers: Headers, receive: Receive) -> Answer:
        context = await self._identified().identify(route, headers)
        body = await read_body(receive, headers, self._limits.body_bytes)
        agent, within = agent_in(headers)
        return await self._counting.answer(route.rest, context, agent, body, within)

    async def _replaying(self, route: AgentRoute, headers: Headers) -> Answer:
        context = await self._identified().identify(route, headers)
        agent, within = agent_in(headers)
        done = await self._calls.replays.is_done(context, Path(within, agent))
        return Answer(200, to_json({"replaying": done}))

    async def _models(self, route: AgentRoute, headers: Headers) -> Answer:
        context = await self._identified().identify(route, headers)
        run = context.rollout.run
        await self._policies.load(run)
        anthropic = models.is_anthropic(headers)
        found = models.models(
            route.rest,
            self._policies.answered(run),
            lambda name: self._policies.answering(run, name),
            anthropic=anthropic,
        )
        return Answer(200, to_json(found))

    def _identified(self) -> Identifier:
        if self._identifier is None:
            raise RuntimeError("the gateway was not started: await Gateway.start() first")
        return self._identifier


def raw_path(scope: Scope) -> str:
    """The path before percent-decoding, so that a name may contain a slash."""
    raw: bytes | None = scope.get("raw_path")
    return raw.partition(b"?")[0].decode("latin-1") if raw else scope["path"]


def error_format(scope: Scope) -> Callable[[Refusal], bytes]:
    """How the client of this request expects to read an error."""
    route = agent_route(raw_path(scope))
    rest = route.rest if route is not None else ""
    if rest in SPOKEN:
        return SPOKEN[rest].error
    if rest.startswith("messages/") or models.is_anthropic(dict(scope["headers"])):
        return ANTHROPIC.error
    return Refusal.body


def refusal_of(error: LightningError) -> Refusal:
    """An error of ours as the client gets it."""
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
    return Refusal(status, error.code, str(error), retry_after=2 if status == 503 else None)


def no_websockets() -> Refusal:
    """The refusal by which clients that try a WebSocket first use HTTP at once."""
    return Refusal(
        426,
        "websockets_unsupported",
        "the gateway answers over HTTP, not over WebSockets; send the request by POST, or turn WebSockets off in"
        " the client (Codex: `supports_websockets = false` of its model provider)",
    )


def _unserved(method: str, path: str) -> Refusal:
    return Refusal(
        404,
        "no_such_route",
        f"the gateway does not serve {method} {shown_path(path)}. What the run's policies don't answer (embeddings,"
        " judges) goes where the user's own variables say if a key was among them (OPENAI_API_KEY) when the runner was"
        " started; a command finds them as LIGHTNINGRL_USER_OPENAI_API_KEY and so on. Else it needs a client with a base"
        f" URL and key of its own. The gateway serves {'; '.join(SERVED_ROUTES)}.",
    )
