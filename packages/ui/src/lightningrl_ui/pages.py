"""The screens: each reads what its address names, and answers with a page or a table.

Invariant: they only read, and each leaves no transaction open when it has answered.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from lightningrl.cli.tree import as_text
from lightningrl.errors import ConfigError, NotFound
from lightningrl.experience.drift import Drift
from lightningrl.schema import GroupId, Mode
from lightningrl.store import RolloutQuery
from lightningrl_ui import figures
from lightningrl_ui.address import changed
from lightningrl_ui.asked import asked_run as _run
from lightningrl_ui.asked import csv_answer as _csv
from lightningrl_ui.asked import download as _download
from lightningrl_ui.asked import needed_store as _needed_store
from lightningrl_ui.asked import run_store as _store
from lightningrl_ui.asked import text_of as _text
from lightningrl_ui.asked import wants_csv as _wants_csv
from lightningrl_ui.asked import whole_of as _whole
from lightningrl_ui.rendering import page
from lightningrl_ui.run_files import metric_lines, pulse
from lightningrl_ui.sources import Run, Sources
from lightningrl_ui.views import compare as comparing
from lightningrl_ui.views.group import GroupView, group_view
from lightningrl_ui.views.iteration import ORDERS, GroupLine, group_lines, scale, sorted_groups
from lightningrl_ui.views.rollout import RolloutView, call_view, rollout_view
from lightningrl_ui.views.run import (
    ITERATION_COLUMNS,
    IterationLine,
    RunLine,
    RunView,
    drift_rows,
    findings,
    iteration_counts,
    iterations_under_way,
    metric_names,
    run_line,
    run_view,
)

MOST_SIGHTED = 12
"""Metrics drawn at once."""

Handler = Callable[[Request, Sources], Awaitable[Response]]


async def runs(request: Request, sources: Sources) -> Response:
    """Every run."""
    lines = [run_line(one) for one in await sources.runs()]
    if _wants_csv(request):
        return _csv("runs", _RUN_HEAD, map(_run_row, lines))
    return page("runs.html", lines=lines, looked=sources.targets or ("runs/",))


_RUN_HEAD = ("run", "state", "ended", "iteration", "iterations", "metric", "last", "best", "started", "place")  # fmt: skip


def _run_row(one: RunLine) -> tuple[Any, ...]:
    far = one.progress
    state = (None,) * 4 if far is None else (far.state, far.ended, far.iteration, far.iterations)
    metric = one.headline.metric if one.headline is not None else None
    return (one.run.key, *state, metric, one.last, one.best, one.started_at, one.run.place)


async def run(request: Request, sources: Sources) -> Response:
    """One run."""
    found = await _run(request, sources)
    table = request.query_params.get("table")
    if _wants_csv(request) and table is None:
        return _metrics_csv(found)
    view = run_view(found)
    store, problem = await _store(sources, found)
    under_way = [] if store is None else await iterations_under_way(store, found, view.lines)
    if _wants_csv(request):
        return _run_table(found, view, under_way, str(table))
    wanted, chosen = request.query_params.get("q", ""), request.query_params.getlist("metric")
    names = metric_names(view.lines)
    matching = [name for name in names if wanted.casefold() in name.casefold()]
    return page(
        "run.html",
        run=found,
        view=view,
        problem=problem,
        iterations=under_way + view.iterations,
        columns=ITERATION_COLUMNS,
        drift=[] if view.drift is None else drift_rows(view.drift.run),
        has_store=store is not None,
        copied_at=sources.copied_at(found),
        rewards=figures.reward_figure(found.name, view.lines),
        parts=figures.parts_figure(found.name, view.lines),
        times=figures.time_figure(found.name, view.lines),
        wanted=wanted,
        chosen=chosen,
        most=MOST_SIGHTED,
        names=names,
        matching=matching if wanted else [],
        metrics=figures.metrics_figure(found.name, view.lines, chosen[:MOST_SIGHTED]),
    )


def _run_table(
    found: Run, view: RunView, under_way: Sequence[IterationLine], table: str
) -> Response:
    """One of the small tables of a run's screen."""
    metrics = ITERATION_COLUMNS.values()
    tables: dict[str, tuple[tuple[str, ...], Iterator[tuple[Any, ...]]]] = {
        "iterations": (("iteration", *metrics, "under_way"), ((one.iteration, *map(one.line.get, metrics), one.under_way) for one in (*under_way, *view.iterations))),
        "guards": (("guard", "metric", "last", "side", "limit", "unit", "nearness", "beyond", "patience"), ((one.key, one.metric, one.value, one.side, one.bound, figures.unit_of(one.metric), one.nearness, one.beyond, one.patience) for one in view.guards)),
        "phases": (("phase", "mean_seconds", "share"), iter(view.phases)),
        "drift": (("iteration", "what", "value", "unit"), ((of, *row) for of, drift in _drifts(view) for row in drift_rows(drift))),
    }  # fmt: skip
    if table not in tables:
        raise ConfigError(f"table={table!r}: a run has {', '.join(tables)}")
    return _csv(f"{found.name}-{table}", *tables[table])


def _drifts(view: RunView) -> list[tuple[str, Drift]]:
    """The drift of all iterations together, then of each."""
    return [] if view.drift is None else [("all", view.drift.run), *view.drift.iterations.items()]


async def run_findings(request: Request, sources: Sources) -> Response:
    """What doctor says of a run: a part of a page; with `short` their number alone."""
    found = await _run(request, sources)
    store, problem = await _store(sources, found)
    said = [] if store is None else await findings(found, store)
    if _wants_csv(request):
        rows = ((one.kind, one.level.value, one.evidence, one.remedy) for one in said)
        return _csv(f"{found.name}-findings", ("kind", "level", "evidence", "remedy"), rows)
    short = "short" in request.query_params
    return page(
        "findings.html", run=found, said=said, problem=problem, short=short, none=store is None
    )


async def iteration(request: Request, sources: Sources) -> Response:
    """The groups of an iteration."""
    found = await _run(request, sources)
    query = request.query_params
    store = await _needed_store(sources, found)
    number = _whole(query, "n")
    counts = await iteration_counts(store, found, number)
    mode = _mode(query.get("mode")) or next((Mode(one) for one in counts), Mode.TRAIN)
    order, descending = query.get("sort", "place"), query.get("down") == "1"
    if order not in ORDERS:
        raise ConfigError(f"groups can't be sorted by {order!r}; use one of {', '.join(ORDERS)}")
    groups = await group_lines(store, found, mode, number)
    lines = sorted_groups(groups, order, descending=descending)
    if _wants_csv(request):
        return _csv(f"{found.name}-iteration-{number}-{mode}", _GROUP_HEAD, _group_rows(lines))
    low, high = scale(lines)
    own = {"run": found.key, "n": str(number), "mode": mode.value}

    def sorting(by: str) -> str:
        down = "1" if by == order and not descending else None
        return changed("iteration", own, sort=by, down=down)

    return page(
        "iteration.html",
        run=found,
        number=number,
        mode=mode.value,
        counts=counts,
        lines=lines,
        order=order,
        descending=descending,
        sorting=sorting,
        low=low,
        high=high,
        line=next((one for one in metric_lines(found.folder) if one["iteration"] == number), {}),
    )


_GROUP_HEAD = ("task", "variant", "group", "verdict", "why", "mean", "spread", "member", "rollout", "state", "reward", "failure")  # fmt: skip


def _group_rows(lines: Sequence[GroupLine]) -> Iterator[tuple[Any, ...]]:
    for line in lines:
        own = (line.task_id, line.variant, line.group_id, line.verdict.value, line.why, line.mean, line.spread)  # fmt: skip
        for one in line.members:
            spec = one.rollout.spec
            yield (
                *own,
                spec.member,
                one.rollout.id,
                one.rollout.state.value,
                one.reward,
                one.failure,
            )


async def group(request: Request, sources: Sources) -> Response:
    """The members of a group side by side."""
    found = await _run(request, sources)
    store = await _needed_store(sources, found)
    ident = GroupId(_text(request.query_params, "id"))
    members = await store.rollouts(RolloutQuery(run=found.name, group_id=ident, limit=1))
    if not members:
        raise NotFound(f"run {found.name!r} has no group {ident!r}")
    view = await group_view(store, found, members[0])
    if _wants_csv(request):
        return _csv(f"{found.name}-group", _STEP_HEAD, _member_rows(view))
    low, high = scale([view.line])
    spec = members[0].spec
    return page("group.html", run=found, view=view, spec=spec, low=low, high=high)


_STEP_HEAD = ("member", "rollout", "reward", "step", "kind", "agent", "name", "starts_seconds", "did", "error")  # fmt: skip


def _member_rows(view: GroupView) -> Iterator[tuple[Any, ...]]:
    for column in view.columns:
        rollout = column.member.rollout
        for place, step in enumerate(column.steps):
            one = step.transition
            yield (rollout.spec.member, rollout.id, column.member.reward, place, one.kind.value, step.lane, one.name, step.starts, step.action, one.error)  # fmt: skip


async def rollout(request: Request, sources: Sources) -> Response:
    """A rollout, step by step."""
    found = await _run(request, sources)
    store = await _needed_store(sources, found)
    query = request.query_params
    number = _whole(query, "attempt") if "attempt" in query else None
    view = await rollout_view(store, found, _text(query, "id"), number)
    if _wants_csv(request):
        return _csv(f"{found.name}-rollout", _CALL_HEAD, _step_rows(view))
    wanted, steps = query.get("q", ""), view.shown.steps if view.shown is not None else ()
    return page(
        "rollout.html",
        run=found,
        view=view,
        spec=view.rollout.spec,
        q=wanted,
        matches=sum(step.contains(wanted) for step in steps) if wanted else 0,
    )


_CALL_HEAD = ("step", "depth", "kind", "agent", "name", "starts_seconds", "ends_seconds", "policy", "version", "endpoint", "prompt_tokens", "sampled_tokens", "latency_ms", "reward", "not_trained", "did", "error")  # fmt: skip


def _step_rows(view: RolloutView) -> Iterator[tuple[Any, ...]]:
    for step in view.shown.steps if view.shown is not None else ():
        one, call = step.transition, step.transition.call
        wire = (call.policy, call.version_end, call.endpoint, call.prompt_tokens, call.completion_tokens, call.latency_ms) if call is not None else (None,) * 6  # fmt: skip
        yield (one.step_id, step.depth, one.kind.value, step.lane, one.name, step.starts, step.ends, *wire, one.reward, one.untrainable, step.action, one.error)  # fmt: skip


async def call(request: Request, sources: Sources) -> Response:
    """A model call, whole."""
    found = await _run(request, sources)
    store = await _needed_store(sources, found)
    query = request.query_params
    view = await call_view(store, found, _text(query, "attempt"), _text(query, "id"))
    if query.get("as") == "json":
        record: dict[str, Any] = {"request": view.call.request.decode(errors="replace")}
        record["answers"] = [one.message.decode(errors="replace") for one in view.call.choices]
        return _download("call.json", json.dumps(record, indent=2), "application/json")
    return page("call.html", run=found, view=view, spec=view.rollout.spec)


async def compare(request: Request, sources: Sources) -> Response:
    """Several runs."""
    every = await sources.runs()
    query = request.query_params
    keys = query.getlist("run")
    by_key = {one.long_key: one for one in every} | {one.key: one for one in every}
    unknown = [key for key in keys if key not in by_key]
    if unknown:
        raise NotFound(f"there is no run {unknown[0]!r}")
    chosen = [by_key[key] for key in dict.fromkeys(keys)]
    names = sorted({name for one in chosen for name in metric_names(metric_lines(one.folder))})
    metric = query.get("metric") or next(
        (one for one in ("val/reward", "train/reward", "sft/loss") if one in names), ""
    )
    axis = query.get("over", "iteration")
    if axis not in comparing.AXES:
        raise ConfigError(f"over={axis!r}: use one of {', '.join(comparing.AXES)}")
    curves = comparing.curves(chosen, metric, axis)
    bands = comparing.bands(chosen, metric) if axis == "iteration" else []
    if _wants_csv(request) and "table" in query:
        return _compared_table(chosen, bands, query["table"])
    if _wants_csv(request):
        rows = ((one.label, x, y) for one in curves for x, y in zip(one.x, one.y, strict=True))
        return _csv("compare", ("run", axis, metric), rows)
    return page(
        "compare.html",
        every=every,
        chosen=chosen,
        lines=[run_line(one) for one in chosen],
        names=names,
        metric=metric,
        axis=axis,
        axes=comparing.AXES,
        figure=figures.compare_figure(metric, axis, curves, bands),
        bands=bands,
        differences=[
            (one.key, [as_text(value) for value in one.values])
            for one in comparing.differences(chosen)
        ],
    )


def _compared_table(chosen: Sequence[Run], bands: Sequence[comparing.Band], table: str) -> Response:
    """One of the small tables of the screen of several runs."""
    if table == "recipes":
        head = ("key", *(one.key for one in chosen))
        found = comparing.differences(chosen)
        return _csv(table, head, [(one.key, *map(as_text, one.values)) for one in found])
    if table == "runs":
        return _csv(table, _RUN_HEAD, [_run_row(run_line(one)) for one in chosen])
    if table == "seeds":
        rows = (
            (band.label, *point)
            for band in bands
            for point in zip(band.x, band.mean, band.deviation, band.least, band.most, strict=True)
        )
        return _csv(table, ("runs", "iteration", "mean", "deviation", "least", "most"), rows)
    raise ConfigError(f"table={table!r}: runs beside each other have runs, seeds, recipes")


async def beat(request: Request, sources: Sources) -> Response:
    """A text that changes when what a page shows may have: of one run, or of all."""
    key = request.query_params.get("run")
    found = [await sources.run(key)] if key else await sources.runs()
    return JSONResponse({one.key: pulse(one.folder, one.store_url) for one in found})


def _mode(name: str | None) -> Mode | None:
    if name is None:
        return None
    try:
        return Mode(name)
    except ValueError as error:
        known = ", ".join(mode.value for mode in Mode)
        raise ConfigError(f"there is no mode {name!r}; use one of {known}") from error


def _metrics_csv(found: Run) -> Response:
    lines = metric_lines(found.folder)
    names = ["iteration", *metric_names(lines)]
    rows = ([line.get(name) for name in names] for line in lines)
    return _csv(f"{found.name}-metrics", names, rows)
