"""The screen of what happens now."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from lightningrl.errors import ConfigError
from lightningrl.schema import Rollout
from lightningrl_ui.asked import asked_run, csv_answer, needed_store, text_of, wants_csv
from lightningrl_ui.rendering import page
from lightningrl_ui.sources import Run, Sources
from lightningrl_ui.views.live import MOST, SEEN_SECONDS, LiveView, live_view


async def live(request: Request, sources: Sources) -> Response:
    """What a run is doing at this moment."""
    found = await asked_run(request, sources)
    view = await live_view(await needed_store(sources, found), found, sources.server_key)
    if wants_csv(request):
        return _csv(found, view, text_of(request.query_params, "table"))
    return page("live.html", run=found, view=view, most=MOST, seen_seconds=SEEN_SECONDS)


async def live_beat(request: Request, sources: Sources) -> Response:
    """A text that changes when what the run does has changed."""
    found = await asked_run(request, sources)
    view = await live_view(await needed_store(sources, found), found, sources.server_key)
    return PlainTextResponse(hashlib.sha256(view.digest.encode()).hexdigest())


def _csv(found: Run, view: LiveView, table: str) -> Response:
    """One of the screen's tables."""
    tables: dict[str, tuple[tuple[str, ...], Iterable[tuple[Any, ...]]]] = {
        "policies": (("policy", "version", "state", "in_flight", "held_back", "held_seconds", "engine", "up", "failures"), _engines(view)),
        "runners": (("runner", "run", "holds", "got", "heard_seconds_ago"), ((one.name, one.run, one.running, one.claimed, ago) for one, ago in view.workers)),
        "running": (("rollout", "task", "member", "mode", "iteration", "attempt", "runner", "runs_seconds", "timeout_seconds", "lease_seconds_left"), ((*_rollout(one.rollout), one.attempt.number, one.attempt.worker, one.runs_seconds, one.rollout.spec.timeout_seconds, one.left_seconds) for one in view.leases)),
        "queued": (("rollout", "task", "member", "mode", "iteration", "since"), ((*_rollout(one), one.created_at) for one in view.queued)),
        "groups": (("group", "task", "mode", "iteration", "complete", "await_rewards", "members"), ((one.group_id, one.task_id, one.mode.value, one.iteration, one.complete, one.ended - one.complete, one.members) for one in view.open_groups)),
    }  # fmt: skip
    if table not in tables:
        raise ConfigError(f"table={table!r}: use one of {', '.join(tables)}")
    head, rows = tables[table]
    return csv_answer(f"{found.name}-{table}", head, rows)


def _rollout(one: Rollout) -> tuple[Any, ...]:
    spec = one.spec
    return (one.id, spec.task_id, spec.member, spec.mode.value, spec.iteration)


def _engines(view: LiveView) -> Iterator[tuple[Any, ...]]:
    """A row per engine; without a word of the gateway what it does is empty."""
    for one in view.policies:
        status, own = one.status, (one.policy.name, one.policy.version)
        if status is None:
            rows = [(None, None, None, one.held_seconds, engine.url, None, None) for engine in one.policy.endpoints]  # fmt: skip
        else:
            rows = [(status.state, status.in_flight, status.waiting, one.held_seconds, engine.url, engine.up, engine.failures) for engine in status.endpoints]  # fmt: skip
        yield from ((*own, *row) for row in rows)
