"""The screen of what happens now."""

from __future__ import annotations

import hashlib

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from lightningrl_ui.asked import asked_run, needed_store
from lightningrl_ui.rendering import page
from lightningrl_ui.sources import Sources
from lightningrl_ui.views.live import MOST, SEEN_SECONDS, live_view


async def live(request: Request, sources: Sources) -> Response:
    """What a run is doing at this moment."""
    found = await asked_run(request, sources)
    view = await live_view(await needed_store(sources, found), found, sources.server_key)
    return page("live.html", run=found, view=view, most=MOST, seen_seconds=SEEN_SECONDS)


async def live_beat(request: Request, sources: Sources) -> Response:
    """A text that changes when what the run does has changed."""
    found = await asked_run(request, sources)
    view = await live_view(await needed_store(sources, found), found, sources.server_key)
    return PlainTextResponse(hashlib.sha256(view.digest.encode()).hexdigest())
