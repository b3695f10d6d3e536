"""The screen of credit: a rollout's steps, what their credit was made of, and other methods beside it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from lightningrl.credit import assigner_names
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
from lightningrl_ui.views.credit import CreditView, credit_view


async def credit(request: Request, sources: Sources) -> Response:
    """The credit of a rollout's steps."""
    found = await asked_run(request, sources)
    store = await needed_store(sources, found)
    query = request.query_params
    names = [one.strip() for one in query.get("with", "").split(",") if one.strip()]
    state = whole_of(query, "state") if "state" in query else None
    view = await credit_view(store, found, text_of(query, "id"), names, state)
    if wants_csv(request):
        head = ("step", "place", "agent", "reward", "step_reward", "credit", *view.parts, "state", "not_trained")  # fmt: skip
        return csv_answer(f"{found.name}-credit", head, _rows(view))
    return page(
        "credit.html",
        run=found,
        view=view,
        spec=view.rollout.spec,
        names=",".join(names),
        state=state,
        known=assigner_names(),
    )


def _rows(view: CreditView) -> Iterator[tuple[Any, ...]]:
    for one in view.calls:
        parts = (one.parts.get(name) for name in view.parts)
        yield (one.step_id, one.place, one.agent, one.reward, one.step_reward, one.credit, *parts, one.state, one.reason)  # fmt: skip
