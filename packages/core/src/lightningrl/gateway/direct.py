"""A model in use, not in training: calls in every dialect are answered by one engine, and nothing is recorded.

Invariant: what a client says of sampling counts, whatever model name it asks for; there is no rollout, no key
and no policy version.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from functools import partial
from typing import Any

import msgspec

from lightningrl.conversation.history import Recorded
from lightningrl.conversation.malformed import Malformed
from lightningrl.conversation.rewriting import HOSTED_TOOLS, Rewriter, Rewritten
from lightningrl.errors import LightningError
from lightningrl.gateway.app import error_format, no_websockets, raw_path, refusal_of
from lightningrl.gateway.asgi import (
    EVENT_STREAM,
    JSON,
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
from lightningrl.gateway.counting import COUNTED, counted, read_counted
from lightningrl.gateway.dialects import SPOKEN, models
from lightningrl.gateway.dialects.base import AgentRequest, Spoken
from lightningrl.gateway.dialects.engine_reply import EngineReply, with_call_ids
from lightningrl.gateway.dialects.engine_request import EngineRequest
from lightningrl.gateway.dialects.reading import refusal_of as refusal_of_malformed
from lightningrl.gateway.dialects.reading import without_halves
from lightningrl.gateway.identity import agent_route
from lightningrl.gateway.interrupt import UntilHangup
from lightningrl.gateway.limits import GatewayLimits
from lightningrl.gateway.speaking import Speaker
from lightningrl.gateway.unknown_fields import MOST_TOLD, a_request
from lightningrl.gateway.upstream import Sending, Upstream, refusal_of_engine
from lightningrl.machine.clock import Clock
from lightningrl.schema import Dialect, Endpoint, Policy, RewriteRules, StepId, new_id

_LOG = logging.getLogger(__name__)


class _WantsIds(msgspec.Struct):
    return_token_ids: Any = None


_WANTS_IDS = msgspec.json.Decoder(_WantsIds)
_WITH_IDS = (Dialect.CHAT, Dialect.COMPLETIONS)
"""vLLM gives token ids in these, so that a gateway before this one, such as `lightningrl try`'s, can record them."""


class DirectGateway:
    """Answers model calls by one engine; an ASGI app with a beginning and an end."""

    def __init__(
        self,
        endpoint: Endpoint,
        model: str,
        *,
        clock: Clock,
        rules: RewriteRules,
        limits: GatewayLimits | None = None,
    ) -> None:
        """Make a gateway that is not started.

        Args:
            endpoint: the engine's.
            model: the name by which the engine is asked.
            clock: where the time comes from.
            rules: how requests are rewritten before the engine sees them. What is pinned is held still within a
                request alone, as nothing is remembered.
            limits: bounds; `None` means the defaults.
        """
        self._endpoint = endpoint
        self._model = Policy(model, "", 0, (endpoint,), rules=rules)
        self._rewriter = Rewriter(rules)
        self._limits = limits or GatewayLimits()
        self._upstream = Upstream(clock, self._limits)
        self._left_out: set[str] = set()
        """What the log says is left out of requests."""
        self._requests = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def start(self) -> None:
        """Get ready to answer."""
        self._upstream.start()

    async def stop(self) -> None:
        """Let running calls finish for `close_seconds`, then close the connections to the engine."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), self._limits.close_seconds)
        await self._upstream.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request."""
        if scope["type"] != "http":
            raise RuntimeError(f"the gateway answers http, not {scope['type']!r}")
        speaker = Speaker(send, self._limits)
        self._requests += 1
        self._idle.clear()
        try:
            await speaker.answer(await self._guarded(scope, receive, speaker))
        except ClientGone:
            return
        finally:
            speaker.stop()
            self._requests -= 1
            if not self._requests:
                self._idle.set()

    async def _guarded(self, scope: Scope, receive: Receive, speaker: Speaker) -> Answer:
        """The answer, whatever happens."""
        try:
            return await self._routed(scope, receive, speaker)
        except ClientGone:
            raise
        except Refusal as refused:
            refusal = refused
        except LightningError as error:
            refusal = refusal_of(error)
        except Exception:  # noqa: BLE001 - the outermost boundary: clients get an answer
            _LOG.exception("%s %s failed", scope["method"], raw_path(scope))
            refusal = Refusal(500, "gateway_failed", "the gateway failed; its log says why")
        return refusal.answer(error_format(scope))

    async def _routed(self, scope: Scope, receive: Receive, speaker: Speaker) -> Answer:
        method, path = scope["method"], raw_path(scope)
        headers: Headers = dict(scope["headers"])
        route = agent_route(path)
        rest = "" if route is None else route.rest
        if method == "GET" and path == "/healthz":
            return Answer(200, b'{"ok":true}')
        if method == "POST" and rest in SPOKEN:
            return await self._call(SPOKEN[rest], headers, receive, speaker)
        if method == "POST" and rest in COUNTED:
            return await self._count(COUNTED[rest], headers, receive)
        if method == "GET" and rest.partition("/")[0] == models.ROUTE:
            anthropic = models.is_anthropic(headers)
            listed = {self._model.name: self._model}
            told = models.models(rest, listed, lambda _: self._model, anthropic=anthropic)
            return Answer(200, to_json(told))
        if method == "GET" and b"upgrade" in headers and rest in SPOKEN:
            raise no_websockets()
        served = ", ".join(f"POST /v1/{one}" for one in (*SPOKEN, *COUNTED))
        raise Refusal(404, "no_such_route", f"here are {served} and GET /v1/models")

    async def _call(
        self, spoken: Spoken, headers: Headers, receive: Receive, speaker: Speaker
    ) -> Answer:
        body = await read_body(receive, headers, self._limits.body_bytes)
        request = await spoken.read(without_halves(body), _nothing_recorded)
        for name in request.unknown:
            self._tell(f"the field {name[:100]!r} of {a_request(spoken)} is unknown")
        rewritten = self._rewritten(request, spoken)
        asked = msgspec.structs.replace(request.engine, fields=rewritten.fields)
        for one in rewritten.rewrites:
            if one.name == HOSTED_TOOLS:
                self._tell(f"nobody runs {', '.join(one.by)!r} of {spoken.dialect.value} requests")
        step = StepId(new_id("s"))
        if request.streams:
            speaker.expect(step, partial(spoken.waiting, request.model, step), spoken.error_event)
        with UntilHangup(receive):
            status, answer = await self._ask(asked, step)
        if status != 200:
            raise refusal_of_engine(status, answer, self._endpoint.url)
        try:
            reply = with_call_ids(asked.parse(answer), step)
            written = request.write(reply, step)
        except (ValueError, RecursionError, msgspec.DecodeError) as error:
            raise Refusal(
                502, "engine_failed", f"the engine's answer can't be read: {error}"
            ) from error
        if written.streams:
            return Answer(200, written.body, EVENT_STREAM)
        if spoken.dialect in _WITH_IDS and _WANTS_IDS.decode(body).return_token_ids is True:
            return Answer(200, _with_token_ids(written.body, reply, spoken.dialect), JSON)
        return Answer(200, written.body, JSON)

    async def _ask(self, asked: EngineRequest, step: StepId) -> tuple[int, bytes]:
        """Status and body of the engine's answer; a limit of tokens that the context has no room for is no limit."""
        limited = asked.max_tokens is not None
        while True:
            status, answer = await self._upstream.post(
                (self._endpoint,),
                asked.path,
                asked.encoded(self._model.name, None, limited=limited),
                {"content-type": "application/json", "x-request-id": step},
                Sending(),
            )
            if status != 400 or not limited or not asked.is_beyond_context(answer):
                return status, answer
            limited = False

    async def _count(self, spoken: Spoken, headers: Headers, receive: Receive) -> Answer:
        body = await read_body(receive, headers, self._limits.body_bytes)
        request = await read_counted(spoken, body, _nothing_recorded)
        sent = self._rewritten(request, spoken).fields
        return await counted(self._upstream, (self._endpoint,), self._model.name, spoken, sent)

    def _rewritten(self, request: AgentRequest, spoken: Spoken) -> Rewritten:
        try:
            return self._rewriter.rewrite(request.engine.fields, spoken.dialect)
        except Malformed as error:
            raise refusal_of_malformed(error) from error

    def _tell(self, said: str) -> None:
        """Say once that something is left out."""
        if said not in self._left_out and len(self._left_out) < MOST_TOLD:
            self._left_out.add(said)
            _LOG.warning("%s here: it is left out", said)


def _with_token_ids(answer: bytes, reply: EngineReply, dialect: Dialect) -> bytes:
    """The answer with what was sampled and its prompt, where vLLM has them."""
    body = msgspec.json.decode(answer)
    for written, choice in zip(body["choices"], reply.choices, strict=True):
        written["token_ids"] = choice.token_ids
        if dialect is Dialect.COMPLETIONS:
            written["prompt_token_ids"] = reply.prompt_token_ids
    if dialect is Dialect.CHAT:
        body["prompt_token_ids"] = reply.prompt_token_ids
    return to_json(body)


async def _nothing_recorded() -> Recorded:
    return Recorded()
