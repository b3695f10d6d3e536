"""Checks of a run under way: its runners, leases, engines, and its gateway.

A run that has ended is not blamed for what it no longer needs.
"""

from __future__ import annotations

from collections.abc import Iterator

from lightningrl.checks.evidence import MOST_COUNTED, Evidence, Finding, Level, counted


def no_runner(found: Evidence) -> Iterator[Finding]:
    """Rollouts wait and nobody runs them."""
    now = found.operations
    if now is not None and now.waiting and not now.workers:
        least = "at least " if now.waiting == MOST_COUNTED else ""
        yield Finding(
            "no runner",
            Level.PROBLEM,
            f"{least}{counted(now.waiting, 'rollout')} of run {found.run!r} are queued, and no runner"
            " has asked for work within 30 s",
            "start one: lightningrl runner RECIPE --server URL (`lightningrl train` starts its own;"
            " its logs/ say why they ended)",
        )


def expired_lease(found: Evidence) -> Iterator[Finding]:
    """Attempts whose worker is silent, and that nobody has ended."""
    now = found.operations
    late = [] if now is None else [one for one in now.running if one.lease_expires_at < now.now]
    if now is None or not late:
        return
    oldest = min(late, key=lambda one: one.lease_expires_at)
    seconds = (now.now - oldest.lease_expires_at).total_seconds()
    yield Finding(
        "expired lease",
        Level.PROBLEM,
        f"{counted(len(late), 'running attempt')} without a lease; that of attempt {oldest.id!r}"
        f" (rollout {oldest.rollout_id!r}, worker {oldest.worker!r}) ran out {seconds:.0f} s ago",
        "the server ends such attempts every second, so it is not running: start it again"
        " (lightningrl serve, or lightningrl train, which resumes)",
    )


def engine_down(found: Evidence) -> Iterator[Finding]:
    """An endpoint of a policy does not answer."""
    now = found.operations
    if now is None or not now.active:
        return
    for engine in now.engines:
        if engine.problem is not None:
            yield Finding(
                "engine down",
                Level.PROBLEM,
                f"endpoint {engine.url!r} of policy {engine.policy!r}: {engine.problem}",
                "start the engine again, or register its new URL; calls are retried meanwhile",
            )


def gateway_held(found: Evidence) -> Iterator[Finding]:
    """New calls wait for a weight sync, or are refused because one never finished."""
    now = found.operations
    if now is None or not now.active:
        return
    for policy in now.policies:
        if policy.held_until is None:
            continue
        seconds = (policy.held_until - now.now).total_seconds()
        if seconds > 0:
            evidence = f"new calls of policy {policy.name!r} wait, for {seconds:.0f} s more at most"
            remedy = "a weight sync takes seconds: look again; if it stays, the trainer hangs in it"
        else:
            evidence = (
                f"the hold of policy {policy.name!r} (version {policy.version}) ran out"
                f" {-seconds:.0f} s ago, and calls are refused since: its weights are unknown"
            )
            remedy = "the trainer ended in a weight sync: start it again, it resumes and publishes"
        yield Finding("gateway held", Level.PROBLEM, evidence, remedy)
