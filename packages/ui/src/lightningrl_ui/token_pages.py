"""The screens of tokens: a rollout's sampled tokens, and a part of one call's that is scrolled to."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from lightningrl.errors import ConfigError
from lightningrl_ui.asked import (
    asked_run,
    csv_answer,
    needed_store,
    text_of,
    wants_csv,
    whole_of,
)
from lightningrl_ui.rendering import page
from lightningrl_ui.sources import Sources
from lightningrl_ui.views.tokens import (
    BY,
    LEGENDS,
    TOKEN_COLUMNS,
    TokensView,
    left_out,
    token_rows,
    tokens_view,
)


async def tokens(request: Request, sources: Sources) -> Response:
    """The sampled tokens of a rollout, or of one of its calls."""
    query = request.query_params
    if wants_csv(request) and query.get("table") is None:
        found = await asked_run(request, sources)
        number = whole_of(query, "attempt") if "attempt" in query else None
        store = await needed_store(sources, found)
        rows = await token_rows(store, found, text_of(query, "id"), number)
        return csv_answer(f"{found.name}-tokens", TOKEN_COLUMNS, rows)
    view, by, found = await _view(request, sources)
    if wants_csv(request):
        return csv_answer(f"{found.name}-left-out", ("reason", "calls", "tokens"), left_out(view.calls))  # fmt: skip
    return page(
        "tokens.html",
        run=found,
        view=view,
        spec=view.rollout.spec,
        by=by,
        titles=BY,
        legend=LEGENDS[by],
        left_out=left_out(view.calls),
        call=query.get("call"),
    )


async def more_tokens(request: Request, sources: Sources) -> Response:
    """Further tokens of one call: a part of a page."""
    text_of(request.query_params, "call")
    view, by, found = await _view(request, sources)
    return page("more_tokens.html", run=found, view=view, by=by, one=view.calls[0])


async def _view(request: Request, sources: Sources):
    found = await asked_run(request, sources)
    store = await needed_store(sources, found)
    query = request.query_params
    by = query.get("by", "logprob")
    if by not in BY:
        raise ConfigError(f"tokens can't be coloured by {by!r}; use one of {', '.join(BY)}")
    start = whole_of(query, "start") if "start" in query else 0
    if start < 0:
        raise ConfigError(f"start={start}: tokens are counted from 0")
    view: TokensView = await tokens_view(
        store,
        found,
        text_of(query, "id"),
        by=by,
        attempt=whole_of(query, "attempt") if "attempt" in query else None,
        call=query.get("call"),
        start=start,
    )
    return view, by, found
