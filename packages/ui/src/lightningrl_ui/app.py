"""The page as an ASGI app.

Invariants:
- Nothing on a page comes from elsewhere, and nothing runs that does not stand in a file of this package or of
  plotly's: each answer says so to the browser (`SECURITY`).
- Only a browser that asked for this machine by its name is answered: a page of the internet whose name was made to
  point here gets nothing.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection
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
from lightningrl_ui import credit_pages, pages, token_pages
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


def make_app(sources: Sources, hosts: Collection[str] = LOOPBACK) -> Starlette:
    """The app; it closes `sources` when it ends.

    Args:
        sources: What there is to look at.
        hosts: Names and addresses under which it is asked for.
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
        middleware=[Middleware(_Guarded, hosts=frozenset(hosts))],
        exception_handlers={LightningError: _told, 404: _nothing_here},
        lifespan=lifespan,
    )


def _screen(handler: pages.Handler, sources: Sources):
    async def answer(request: Request) -> Response:
        return await handler(request, sources)

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
    """Adds `SECURITY` to every answer, and refuses who asks under a foreign name."""

    def __init__(self, app: ASGIApp, hosts: frozenset[str]) -> None:
        self._app = app
        self._hosts = hosts

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

        if host_of(scope) not in self._hosts:
            refusal = PlainTextResponse("this page is for this machine alone", status_code=421)
            await refusal(scope, receive, guarded)
            return
        await self._app(scope, receive, guarded)


def host_of(scope: Scope) -> str:
    """The host that a request asks for, without its port; empty where it says none."""
    header = next((value for name, value in scope["headers"] if name == b"host"), b"")
    host = header.decode("latin-1")
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] or host
