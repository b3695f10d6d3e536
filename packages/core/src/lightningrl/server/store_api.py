"""The store over HTTP: `POST /store/v1/{method}`, generic over the contract's type hints.

Invariants: a method is refused before its body is read unless the key is right; an error of ours
arrives as its code and message, anything else as a plain 500 whose cause is in the log; a waiting
call ends when its client hangs up or the server stops, without effect.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from lightningrl.errors import (
    AuthError,
    ConfigError,
    Conflict,
    LightningError,
    LimitReached,
    NotFound,
    StaleAttempt,
    StoreLocked,
    StoreUnavailable,
)
from lightningrl.gateway.asgi import Answer, ClientGone, Receive, Scope, Send, send_answer
from lightningrl.gateway.identity import bearer
from lightningrl.keys import OPEN, AccessKeys
from lightningrl.server.access import (
    check_arguments,
    check_method,
    check_runs,
    check_version,
    visible,
)
from lightningrl.server.repeats import Repeats
from lightningrl.store.base import Store
from lightningrl.store.compression import Compressor, TooLong, unpack_at_most
from lightningrl.store.wire import (
    BODY_LIMIT_BYTES,
    COMPRESS_ABOVE_BYTES,
    METHODS,
    ONCE,
    PREFIX,
    REQUEST_ID_HEADER,
    Method,
    WireError,
)
from lightningrl.user_input.names import suggest

_LOG = logging.getLogger(__name__)
_MSGPACK = b"application/msgpack"

_STATUS: tuple[tuple[type[LightningError], int], ...] = (
    (ConfigError, 400),
    (AuthError, 401),
    (NotFound, 404),
    (Conflict, 409),
    (StaleAttempt, 410),
    (StoreLocked, 423),
    (LimitReached, 429),
    (StoreUnavailable, 503),
)

_encoder = msgspec.msgpack.Encoder()


class _Refused(Exception):
    """A request that never reached the store."""

    def __init__(self, status: int, error: LightningError) -> None:
        super().__init__(str(error))
        self.status = status
        self.error = error


class _Stopping(Exception):
    """The server stops: the client shall ask again."""


class StoreApi:
    """Answers the store's HTTP calls."""

    def __init__(
        self,
        store: Store,
        keys: AccessKeys = OPEN,
        *,
        body_limit: int = BODY_LIMIT_BYTES,
    ) -> None:
        """Serve `store` to those who have one of `keys`, each within its scope."""
        self._store = store
        self._keys = keys
        self._body_limit = body_limit
        self._compressor = Compressor()
        self._repeats = Repeats()
        self._stopping = asyncio.Event()

    def stop_waiting(self) -> None:
        """End the calls that wait: their clients are told to ask again."""
        self._stopping.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request."""
        headers: dict[bytes, bytes] = dict(scope["headers"])
        try:
            answer = await self._answer(scope, headers, receive)
        except (ClientGone, _Stopping) as end:
            if isinstance(end, ClientGone):
                return
            answer = _error(503, StoreUnavailable("the server is stopping"), retry_after=True)
        except _Refused as refused:
            answer = _error(refused.status, refused.error)
        except LightningError as error:
            status = next((code for cls, code in _STATUS if isinstance(error, cls)), 500)
            answer = _error(status, error)
        except Exception:  # noqa: BLE001  the outermost boundary: the client gets an answer
            _LOG.exception("%s failed", scope["path"])
            answer = _error(500, LightningError("the server failed; its log says why"))
        await send_answer(send, answer)

    async def _answer(self, scope: Scope, headers: dict[bytes, bytes], receive: Receive) -> Answer:
        access = self._keys.access(bearer(headers))
        check_method(access, scope["path"].removeprefix(PREFIX))
        assert access is not None, "nobody without a key comes here"
        check_version(headers)
        method = _method(scope)
        arguments = self._arguments(method, headers, await self._body(headers, receive))
        check_arguments(access.scope, method.name, arguments)
        await check_runs(self._store, access.runs, method.name, arguments)

        async def work() -> bytes:
            result = await self._run(method, arguments, receive)
            return _encoder.encode({"ok": visible(access, method.name, result)})

        request_id = headers.get(REQUEST_ID_HEADER.encode())
        if method.name in ONCE and request_id is not None:
            body = await self._repeats.once(request_id.decode("latin-1"), work)
        else:
            body = await work()
        if len(body) > COMPRESS_ABOVE_BYTES and b"zstd" in headers.get(b"accept-encoding", b""):
            body = self._compressor.pack(body)
            return Answer(200, body, _MSGPACK, ((b"content-encoding", b"zstd"),))
        return Answer(200, body, _MSGPACK)

    def _arguments(
        self, method: Method, headers: dict[bytes, bytes], body: bytes
    ) -> dict[str, Any]:
        try:
            if headers.get(b"content-encoding") == b"zstd":
                body = unpack_at_most(body, self._body_limit)
            return method.arguments(body)
        except TooLong as error:
            raise self._too_long() from error
        except ValueError as error:  # msgspec's errors are ValueErrors too
            raise _Refused(
                400, ConfigError(f"the arguments of {method.name!r} can't be read: {error}")
            ) from error

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        declared = headers.get(b"content-length", b"0")
        size = int(declared) if declared.isdigit() else 0
        parts: list[bytes] = []
        more = size <= self._body_limit
        size = 0 if more else size
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            more = message.get("more_body", False) and size <= self._body_limit
        if size > self._body_limit:
            raise self._too_long()
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _too_long(self) -> _Refused:
        return _Refused(
            413,
            ConfigError(
                f"the request is longer than {self._body_limit} bytes, the most that this server takes"
                " before and after decompression; send fewer records at once, or raise"
                " LIGHTNINGRL_STORE_BODY_BYTES at the server"
            ),
        )

    async def _run(self, method: Method, arguments: dict[str, Any], receive: Receive) -> Any:
        call: Callable[..., Awaitable[Any]] = getattr(self._store, method.name)
        if not method.waits or arguments["wait_seconds"] <= 0:
            return await call(**arguments)
        if self._stopping.is_set():
            raise _Stopping
        return await self._run_waiting(asyncio.ensure_future(call(**arguments)), receive)

    async def _run_waiting(self, work: asyncio.Future[Any], receive: Receive) -> Any:
        gone = asyncio.ensure_future(_hung_up(receive))
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait({work, gone, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in (work, gone, stopping):
                one.cancel()
        try:
            return await work
        except asyncio.CancelledError:
            if gone.done() and not gone.cancelled():
                raise ClientGone from None
            if stopping.done() and not stopping.cancelled():
                raise _Stopping from None
            raise


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _method(scope: Scope) -> Method:
    name = scope["path"].removeprefix(PREFIX)
    if name not in METHODS:
        text = f"the store has no method {name!r}.{suggest(name, METHODS)}"
        raise _Refused(404, ConfigError(text))
    if scope["method"] != "POST":
        raise _Refused(405, ConfigError(f"{name!r} is called by POST, not {scope['method']}"))
    return METHODS[name]


def _error(status: int, error: LightningError, *, retry_after: bool = False) -> Answer:
    body = _encoder.encode({"error": WireError(error.code, str(error))})
    return Answer(status, body, _MSGPACK, ((b"retry-after", b"1"),) if retry_after else ())
