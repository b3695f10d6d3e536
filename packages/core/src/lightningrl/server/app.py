"""One ASGI app: the store's API, the gateway, and two health checks.

`/store/` is the store, for those who have a key. `/healthz` answers 200 while the process does, `/readyz`
200 when the gateway is started and the store can be written, else 503 with the reason. Every other path
is the gateway's.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from lightningrl.errors import StoreError
from lightningrl.gateway.asgi import Answer, Receive, Scope, Send, send_answer
from lightningrl.keys import OPEN, AccessKeys
from lightningrl.server.store_api import StoreApi
from lightningrl.store.base import Store
from lightningrl.store.wire import BODY_LIMIT_BYTES


class Part(Protocol):
    """What the app needs of the gateway."""

    async def start(self) -> None:
        """Get ready to answer."""
        ...

    async def close(self) -> None:
        """Refuse new requests, end those under way."""
        ...

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request."""
        ...


class CheckedStore(Store, Protocol):
    """A store that can tell whether it can be written."""

    async def check_writable(self) -> None:
        """Write something.

        Raises:
            StoreUnavailable: it can't be written; the message says why.
        """
        ...


class Application:
    """The server's ASGI app. It is given its store and leaves it open."""

    def __init__(
        self,
        store: CheckedStore,
        gateway: Part,
        *,
        keys: AccessKeys = OPEN,
        body_limit: int = BODY_LIMIT_BYTES,
    ) -> None:
        """Compose the app; nothing runs before `start`."""
        self._store = store
        self._gateway = gateway
        self._api = StoreApi(store, keys, body_limit=body_limit)
        self._ready = False

    async def start(self) -> None:
        """Start the gateway."""
        await self._gateway.start()
        self._ready = True

    async def stop(self) -> None:
        """Refuse new work and end what waits, so that connections can be drained."""
        self._ready = False
        self._api.stop_waiting()
        await self._gateway.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request."""
        if scope["type"] != "http":
            raise RuntimeError(f"the server answers http, not {scope['type']!r}")
        path: str = scope["path"]
        if path.startswith("/store/"):
            await self._api(scope, receive, send)
        elif path == "/healthz":
            await send_answer(send, Answer(200, b'{"ok":true}'))
        elif path == "/readyz":
            await send_answer(send, await self._readiness())
        else:
            await self._gateway(scope, receive, send)

    async def _readiness(self) -> Answer:
        reason = None if self._ready else "the gateway is not started"
        try:
            await self._store.check_writable()
        except StoreError as error:
            reason = str(error)
        status = 200 if reason is None else 503
        return Answer(status, msgspec.json.encode({"ok": reason is None, "reason": reason}))
