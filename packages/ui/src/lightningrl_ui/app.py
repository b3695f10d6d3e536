"""The page as an ASGI app.

Invariants:
- Nothing on a page comes from elsewhere, and nothing runs that does not stand in a file of this package or of
  plotly's: each answer says so to the browser (`SECURITY`).
- Without keys only a browser that asked for this machine by its name is answered: a page of the internet whose name was
  made to point here gets nothing. With keys nobody without one is answered, and a key of some runs shows those alone.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lightningrl.errors import (
    AuthError,
    ConfigError,
    LightningError,
    NotFound,
    StoreUnavailable,
)
from lightningrl.keys import Access, ViewerKey, viewer_access
from lightningrl.keys import Scope as KeyScope
from lightningrl_ui import credit_pages, live_pages, pages, token_pages
from lightningrl_ui.rendering import page
from lightningrl_ui.sources import Sources

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})

_EMPTY_STYLE = "'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='"
"""The digest of nothing: plotly makes an empty style element and adds its own rules to it by script."""

SECURITY = {
    "content-security-policy": (
        f"default-src 'none'; script-src 'self'; style-src 'self' {_EMPTY_STYLE}; img-src 'self' data: blob:;"
        " connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}

_SCREENS: dict[str, pages.Handler] = {
    "/": pages.runs,
    "/run": pages.run,
    "/findings": pages.run_findings,
    "/iteration": pages.iteration,
    "/group": pages.group,
    "/rollout": pages.rollout,
    "/call": pages.call,
    "/compare": pages.compare,
    "/credit": credit_pages.credit,
    "/credit/methods": credit_pages.credit_methods,
    "/live": live_pages.live,
    "/live/pulse": live_pages.live_beat,
    "/tokens": token_pages.tokens,
    "/tokens/more": token_pages.more_tokens,
    "/pulse": pages.beat,
}

_STATIC = {
    "ui.js": ("text/javascript", Path(str(files("lightningrl_ui") / "static" / "ui.js"))),
    "ui.css": ("text/css", Path(str(files("lightningrl_ui") / "static" / "ui.css"))),
    "plotly.js": ("text/javascript", Path(str(files("plotly") / "package_data" / "plotly.min.js"))),
}

_STATUS: dict[type[LightningError], int] = {
    NotFound: 404,
    ConfigError: 400,
    AuthError: 403,
    StoreUnavailable: 503,
}


def make_app(sources: Sources, viewers: Sequence[ViewerKey] = ()) -> Starlette:
    """The app; it closes `sources` when it ends.

    Args:
        sources: What there is to look at.
        viewers: Whose key is demanded, as a bearer token or as the password of any user. None: who asks for this
            machine by a loopback name needs none.
    """

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncGenerator[None]:
        yield
        await sources.close()

    return Starlette(
        routes=[
            *(Route(path, _screen(handler, sources)) for path, handler in _SCREENS.items()),
            Route("/static/{name}", _static),
        ],
        middleware=[Middleware(_Guarded, viewers=tuple(viewers))],
        exception_handlers={LightningError: _told, 404: _nothing_here},
        lifespan=lifespan,
    )


def _screen(handler: pages.Handler, sources: Sources):
    async def answer(request: Request) -> Response:
        return await handler(request, sources.seen_by(request.state.access))

    return answer


async def _static(request: Request) -> Response:
    found = _STATIC.get(request.path_params["name"])
    if found is None:
        return _nothing_here(request, LookupError())
    kind, path = found
    return FileResponse(path, media_type=kind, headers={"cache-control": "max-age=3600"})


def _told(_: Request, error: Exception) -> Response:
    status = next((code for kind, code in _STATUS.items() if isinstance(error, kind)), 500)
    return page("error.html", code=status, status=status, message=str(error))


def _nothing_here(request: Request, _: Exception) -> Response:
    return page(
        "error.html", code=404, status=404, message=f"there is no page {request.url.path!r}"
    )


class _Guarded:
    """Adds `SECURITY` to every answer, and refuses who has no key or asks under a foreign name."""

    def __init__(self, app: ASGIApp, viewers: tuple[ViewerKey, ...]) -> None:
        self._app = app
        self._viewers = viewers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = {name for name, _ in message["headers"]}
                more = {"cache-control": "no-store", **SECURITY}
                message["headers"] = [
                    *message["headers"],
                    *(
                        (name.encode(), value.encode())
                        for name, value in more.items()
                        if name.encode() not in given
                    ),
                ]
            await send(message)

        access = self._access(scope)
        if access is None:
            await self._refusal()(scope, receive, guarded)
            return
        scope.setdefault("state", {})["access"] = access
        await self._app(scope, receive, guarded)

    def _access(self, scope: Scope) -> Access | None:
        if self._viewers:
            return viewer_access(self._viewers, key_of(scope))
        return Access(KeyScope.ADMIN) if host_of(scope) in LOOPBACK else None

    def _refusal(self) -> Response:
        if not self._viewers:
            return PlainTextResponse("this page is for this machine alone", status_code=421)
        return PlainTextResponse(
            "this page wants a viewer's key: as the password of any user name",
            status_code=401,
            headers={"www-authenticate": 'Basic realm="LightningRL", charset="UTF-8"'},
        )


def key_of(scope: Scope) -> str | None:
    """The key that a request brings: a bearer token, or a password. `None`: it brings none that can be read."""
    header = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
    kind, _, given = header.decode("latin-1").partition(" ")
    if kind.lower() == "bearer":
        return given.strip()
    if kind.lower() != "basic":
        return None
    try:
        return base64.b64decode(given, validate=True).decode().partition(":")[2]
    except ValueError:
        return None


def host_of(scope: Scope) -> str:
    """The host that a request asks for, without its port; empty where it says none."""
    header = next((value for name, value in scope["headers"] if name == b"host"), b"")
    host = header.decode("latin-1")
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] or host
