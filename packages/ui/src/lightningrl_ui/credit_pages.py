"""The screen of credit: a rollout's steps, what their credit was made of, and other methods beside it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from lightningrl.credit import assigner_names
from lightningrl.errors import ConfigError, StoreUnavailable
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
from lightningrl_ui.views.methods import MethodsView, methods_view


async def credit(request: Request, sources: Sources) -> Response:
    """The credit of a rollout's steps."""
    shown = await _shown(request, sources)
    if wants_csv(request):
        table = request.query_params.get("table", "steps")
        if table not in _TABLES:
            raise ConfigError(f"table={table!r}: use one of {', '.join(_TABLES)}")
        head, rows = _TABLES[table](shown)
        return csv_answer(f"{shown['run'].name}-credit-{table}", head, rows)
    return page("credit.html", known=assigner_names(), **shown)


async def credit_methods(request: Request, sources: Sources) -> Response:
    """Other methods beside the run's: a part of a page."""
    return page("credit_methods.html", **await _shown(request, sources))


async def _shown(request: Request, sources: Sources) -> dict[str, Any]:
    """What the screen shows."""
    found = await asked_run(request, sources)
    store = await needed_store(sources, found)
    query = request.query_params
    names = [one.strip() for one in query.get("with", "").split(",") if one.strip()]
    state = whole_of(query, "state") if "state" in query else None
    view = await credit_view(store, found, text_of(query, "id"), state)
    beside = await methods_view(sources, found, view.rollout, view.lesson, names) if names else None
    return {
        "run": found,
        "view": view,
        "beside": beside,
        "spec": view.rollout.spec,
        "names": ",".join(names),
        "state": state,
    }


_Table = tuple[tuple[str, ...], Iterator[tuple[Any, ...]]]
"""Names of columns, and rows."""


def _steps(shown: dict[str, Any]) -> _Table:
    view: CreditView = shown["view"]
    head = ("step", "place", "agent", "reward", "step_reward", "credit", *view.parts, "state", "not_trained")  # fmt: skip
    rows = (
        (one.step_id, one.place, one.agent, one.reward, one.step_reward, one.credit, *map(one.parts.get, view.parts), one.state, one.reason)
        for one in view.calls
    )  # fmt: skip
    return head, rows


def _baselines(shown: dict[str, Any]) -> _Table:
    view: CreditView = shown["view"]
    rows = ((one.agent, one.calls, one.least, one.most) for one in view.baselines)
    return ("agent", "calls", "least", "most"), rows


def _state(shown: dict[str, Any]) -> _Table:
    view: CreditView = shown["view"]
    rows = (
        (one.rollout_id, one.task_id, one.member, one.place, one.agent, one.reward, one.credit)
        for one in view.state
    )
    return ("rollout", "task", "member", "place", "agent", "reward", "credit"), rows


def _methods(shown: dict[str, Any]) -> _Table:
    beside: MethodsView | None = shown["beside"]
    if beside is None:
        raise ConfigError("the address lacks with=..., the methods")
    if beside.waiting:
        raise StoreUnavailable("the methods are being computed; ask again in a few seconds")
    return ("place", "agent", "method", "credit", "part", "value"), _method_rows(beside)


def _method_rows(beside: MethodsView) -> Iterator[tuple[Any, ...]]:
    for one in beside.methods:
        for place, credit in one.credit.items():
            own = (place, (beside.agents or {})[place], one.name, credit)
            yield (*own, None, None)
            for part, value in one.parts[place].items():
                yield (*own, part, value)


_TABLES = {"steps": _steps, "baselines": _baselines, "state": _state, "methods": _methods}
"""The screen's tables, by the name that an address gives them."""
