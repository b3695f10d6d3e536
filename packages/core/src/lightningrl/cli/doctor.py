"""`lightningrl doctor`: what is wrong with a run, how that shows, and what to do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

import aiohttp
import click
from rich.text import Text

from lightningrl.checks import (
    CHECKS,
    MOST_COUNTED,
    Engine,
    Evidence,
    Finding,
    Operations,
    Place,
    examine,
)
from lightningrl.cli.findings import any_problem, as_json, counts_text, findings_text
from lightningrl.cli.stored_run import StoredRun, open_runs, server_options
from lightningrl.cli.terminal import console
from lightningrl.gateway import GatewayClient
from lightningrl.metrics import read_metrics
from lightningrl.schema import AttemptState, Policy, RolloutState
from lightningrl.store import RolloutQuery
from lightningrl.store.urls import Kind, kind_of
from lightningrl.traces import read_attempts

RECENT = 64
"""Rollouts that are looked at: those that were made last and have ended."""

_ENDED = (RolloutState.SUCCEEDED, RolloutState.FAILED)
_PROBE_SECONDS = 3.0


@click.command()
@click.argument("run", metavar="[RUN]", required=False)
@click.option("--json", "as_object", is_flag=True, help="Print one JSON object: run -> findings.")
@server_options
def doctor(run: str | None, as_object: bool, server: str | None, key: str | None) -> None:
    """Say what is wrong with a run.

    Looks at the 64 rollouts that were made last and have ended. Exits with 1 if there is a problem; warnings alone
    exit with 0.

    RUN is a run's folder or its name in runs/; with --server its name, or nothing for all of them.
    """
    found = asyncio.run(_examine(run, server, key))
    if as_object:
        click.echo(json.dumps({name: as_json(findings) for name, findings in found.items()}))
    else:
        terminal = console()
        for name, findings in found.items():
            terminal.print(_report(name, findings))
    if any(map(any_problem, found.values())):
        raise SystemExit(1)


async def _examine(
    run: str | None, server: str | None, key: str | None
) -> dict[str, list[Finding]]:
    """Run -> what is wrong with it."""
    async with open_runs(run, server, key) as runs:
        return {
            one.name: examine(await gather_evidence(one, server, key), Place.DOCTOR) for one in runs
        }


async def gather_evidence(
    run: StoredRun,
    server: str | None = None,
    key: str | None = None,
    *,
    ask_engines: bool = True,
) -> Evidence:
    """What the run's store says now, and how its engines answer.

    With `server` the engines' state is what that server's gateway found; else they are asked from
    here, but only while rollouts are to be run: a run that has ended needs no engine. Without `ask_engines`
    nothing but the store is asked, and no engine is among the evidence.
    """
    store = run.store
    queued = await store.rollouts(
        RolloutQuery(run=run.name, states=(RolloutState.QUEUED,), limit=MOST_COUNTED)
    )
    now_running = await store.rollouts(RolloutQuery(run=run.name, states=(RolloutState.RUNNING,)))
    attempts = await store.attempts([one.id for one in now_running])
    ended = await store.rollouts(
        RolloutQuery(run=run.name, states=_ENDED, descending=True, limit=RECENT)
    )
    policies = await store.policies(run.name)
    unidentified = _unidentified_in_newest(run.folder)
    if not ask_engines:
        engines = []
    elif server is not None and kind_of(server) is Kind.HTTP:
        engines, unidentified = await _told_by_gateway(server, key, run.name)
    elif queued or now_running:
        engines = await _asked_engines(policies)
    else:
        engines = []
    return Evidence(
        run=run.name,
        rollouts=tuple(tuple(records) for records in await read_attempts(store, ended)),
        recipe=run.recipe.recipe if run.recipe is not None else None,
        unidentified=unidentified,
        operations=Operations(
            now=await store.now(),
            waiting=len(queued),
            running=tuple(one for one in attempts if one.state is AttemptState.RUNNING),
            workers=tuple(one for one in await store.workers() if one.run in (None, run.name)),
            policies=tuple(policies),
            engines=tuple(engines),
        ),
    )


def _unidentified_in_newest(folder: Path | None) -> dict[str, int]:
    """What the newest iteration's line in the metrics says of it; it has the number alone."""
    metrics = None if folder is None else folder / "metrics.jsonl"
    lines = read_metrics(metrics) if metrics is not None and metrics.is_file() else []
    return {"": int(lines[-1].get("train/unidentified_calls") or 0)} if lines else {}


async def _told_by_gateway(
    server: str, key: str | None, run: str
) -> tuple[list[Engine], dict[str, int]]:
    """The run's engines, and how many calls of any run were refused since nothing said whose they are."""
    async with GatewayClient(server, key) as gateway:
        policies = await gateway.status()
        refused = await gateway.refused()
    engines = [
        Engine(
            policy.name,
            endpoint.url,
            f"the gateway's last {endpoint.failures} tries failed" if endpoint.failures else None,
        )
        for policy in policies
        if policy.run == run
        for endpoint in policy.endpoints
    ]
    return engines, refused.by_origin


async def _asked_engines(policies: Sequence[Policy]) -> list[Engine]:
    timeout = aiohttp.ClientTimeout(total=_PROBE_SECONDS)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        asked = [
            _ask(session, policy.name, endpoint.url, endpoint.key)
            for policy in policies
            for endpoint in policy.endpoints
        ]
        return await asyncio.gather(*asked)


async def _ask(session: aiohttp.ClientSession, policy: str, url: str, key: str | None) -> Engine:
    headers = {"authorization": f"Bearer {key}"} if key is not None else {}
    try:
        async with session.get(f"{url.rstrip('/')}/models", headers=headers) as response:
            problem = f"it answered {response.status}" if response.status >= 500 else None
    except (aiohttp.ClientError, TimeoutError) as error:
        problem = f"it can't be reached: {error or type(error).__name__}"
    return Engine(policy, url, problem)


def _report(run: str, findings: Sequence[Finding]) -> Text:
    report = Text(f"{run}: ", "bold")
    if not findings:
        checks = sum(Place.DOCTOR in check.places for check in CHECKS)
        return report.append(f"nothing wrong found ({checks} checks)", "green")
    return report.append_text(counts_text(findings)).append_text(findings_text(findings))
