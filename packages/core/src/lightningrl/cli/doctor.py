"""`lightningrl doctor`: what is wrong with a run, how that shows, and what to do."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import aiohttp
import click
from rich.text import Text

from lightningrl.cli.diagnosis import CHECKS, Engine, Problem, Snapshot, diagnose
from lightningrl.cli.stored_run import StoredRun, open_runs, server_options
from lightningrl.cli.terminal import console
from lightningrl.gateway import GatewayClient
from lightningrl.schema import AttemptState, Policy, RolloutState
from lightningrl.store import RolloutQuery
from lightningrl.traces import read_attempts

RECENT = 64
"""Rollouts that are looked at: those that were made last and have ended."""

_ENDED = (RolloutState.SUCCEEDED, RolloutState.FAILED)
_PROBE_SECONDS = 3.0


@click.command()
@click.argument("run", metavar="[RUN]", required=False)
@server_options
def doctor(run: str | None, server: str | None, key: str | None) -> None:
    """Say what is wrong with a run.

    Exits with 1 if something is.

    RUN is a run's folder or its name in runs/; with --server its name, or nothing for all of them.
    """
    found = asyncio.run(_examine(run, server, key))
    terminal = console()
    for name, problems in found.items():
        terminal.print(_report(name, problems))
    if any(found.values()):
        raise SystemExit(1)


async def _examine(
    run: str | None, server: str | None, key: str | None
) -> dict[str, list[Problem]]:
    """Run -> its problems."""
    async with open_runs(run, server, key) as runs:
        return {one.name: diagnose(await take_snapshot(one, server, key)) for one in runs}


async def take_snapshot(
    run: StoredRun, server: str | None = None, key: str | None = None
) -> Snapshot:
    """What the run's store says now, and how its engines answer.

    With `server` the engines' state is what that server's gateway found; else they are asked from
    here, but only while rollouts are to be run: a run that has ended needs no engine.
    """
    store = run.store
    queued = await store.rollouts(RolloutQuery(run=run.name, states=(RolloutState.QUEUED,)))
    now_running = await store.rollouts(RolloutQuery(run=run.name, states=(RolloutState.RUNNING,)))
    attempts = await store.attempts([one.id for one in now_running])
    ended = await store.rollouts(
        RolloutQuery(run=run.name, states=_ENDED, descending=True, limit=RECENT)
    )
    policies = await store.policies(run.name)
    if server is not None:
        engines = await _engines_of_gateway(server, key, run.name)
    elif queued or now_running:
        engines = await _asked_engines(policies)
    else:
        engines = []
    return Snapshot(
        run=run.name,
        now=await store.now(),
        waiting=len(queued),
        running=tuple(one for one in attempts if one.state is AttemptState.RUNNING),
        workers=tuple(one for one in await store.workers() if one.run in (None, run.name)),
        policies=tuple(policies),
        engines=tuple(engines),
        recent=tuple(tuple(records) for records in await read_attempts(store, ended)),
    )


async def _engines_of_gateway(server: str, key: str | None, run: str) -> list[Engine]:
    async with GatewayClient(server, key) as gateway:
        policies = await gateway.status()
    return [
        Engine(
            policy.name,
            endpoint.url,
            f"the gateway's last {endpoint.failures} tries failed" if endpoint.failures else None,
        )
        for policy in policies
        if policy.run == run
        for endpoint in policy.endpoints
    ]


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


def _report(run: str, problems: Sequence[Problem]) -> Text:
    report = Text(f"{run}: ", "bold")
    if not problems:
        report.append(f"nothing wrong found ({len(CHECKS)} checks)", "green")
        return report
    report.append(f"{len(problems)} problem{'s' if len(problems) > 1 else ''}", "red")
    for problem in problems:
        report.append(f"\n\n✗ {problem.name}\n", "bold red")
        report.append(f"  {problem.evidence}\n")
        report.append(f"  → {problem.remedy}", "cyan")
    return report
