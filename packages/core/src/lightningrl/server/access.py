"""What each key may do with the store, and which clients are served.

Invariants:
- A method that is not listed for runners or viewers needs an admin's key; a new one of the contract is the
  admin's until somebody lists it here.
- A viewer's key that names runs is answered of those alone, whatever ids it asks for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from lightningrl.errors import AuthError, ConfigError
from lightningrl.keys import Access, Scope
from lightningrl.schema import TERMINAL, Mode, Policy
from lightningrl.store.base import Store
from lightningrl.store.records import RolloutDump, RolloutQuery
from lightningrl.store.wire import VERSION_HEADER, own_version

RUNNER_METHODS = frozenset(
    {
        *("claim", "heartbeat", "append", "finish", "enqueue"),
        *("attempt", "attempts", "events", "policies", "resource", "rollouts", "now"),
        "load",
    }
)
"""What a runner needs. It enqueues and loads live rollouts alone, and sees no key of an engine."""

VIEWER_METHODS = frozenset(
    {
        *("runs", "rollouts", "groups", "tasks", "attempts", "attempt", "events", "calls", "ended"),
        *("progress", "summary", "statistics", "ledger", "policies", "workers", "gateways", "now"),
        *("resource", "resources", "dump"),
    }
)
"""What looking at a run needs. A viewer changes nothing, waits for nothing, and sees no key of an engine."""

_ALLOWED = {Scope.RUNNER: RUNNER_METHODS, Scope.VIEWER: VIEWER_METHODS}

_NEEDS_KEY = (
    "the store needs the server's admin key (for runners its runner key, to look a viewer key) as a bearer token; "
    "set LIGHTNINGRL_KEY"
)


def check_method(access: Access | None, method: str) -> None:
    """Refuse who may not call `method`.

    Raises:
        AuthError: the key is missing or wrong, or a runner's or viewer's where an admin's is needed.
    """
    if access is None:
        raise AuthError(_NEEDS_KEY)
    allowed = _ALLOWED.get(access.scope)
    if allowed is not None and method not in allowed:
        raise AuthError(
            f"a {access.scope}'s key can't call {method!r}; set LIGHTNINGRL_KEY to the server's admin key"
        )


def check_arguments(scope: Scope, method: str, arguments: Mapping[str, Any]) -> None:
    """Refuse what a runner may not ask of a method that it may call.

    Raises:
        AuthError: it enqueues rollouts of a training run, or loads what is no live rollout of its own.
    """
    if scope is Scope.RUNNER and method == "load":
        _check_load(arguments)
    if scope is Scope.RUNNER and method == "enqueue":
        others = [one.id for one in arguments["rollouts"] if one.mode is not Mode.LIVE]
        if others:
            raise AuthError(
                f"a runner's key enqueues live rollouts alone, and {others[0]!r} is none; "
                "set LIGHTNINGRL_KEY to the server's admin key"
            )


def _check_load(arguments: Mapping[str, Any]) -> None:
    """What records without a gateway loads live rollouts that have ended, and nothing else."""
    rollouts: Sequence[RolloutDump] = arguments.get("rollouts") or ()
    ended = {
        one.rollout.id
        for one in rollouts
        if one.rollout.spec.mode is Mode.LIVE
        and not one.rollout.spec.iteration
        and one.rollout.state in TERMINAL
    }
    loaded = [one.rollout.id for one in rollouts] + list(arguments.get("completed") or ())
    foreign = [ident for ident in loaded if ident not in ended]
    if foreign or arguments.get("resources") or arguments.get("ledger"):
        raise AuthError(
            "a runner's key loads live rollouts that have ended, and nothing else"
            f"{f'; {foreign[0]!r} is none' if foreign else ''}; set LIGHTNINGRL_KEY to the server's "
            "admin key"
        )


async def check_runs(
    store: Store, runs: frozenset[str] | None, method: str, arguments: Mapping[str, Any]
) -> None:
    """Refuse a viewer what is not of `runs`: by the run that it names, else by whose the ids are.

    Raises:
        AuthError: it asks for another run, or for all.
        NotFound: there is no such rollout or attempt.
    """
    if runs is None or method in _OF_EVERY_RUN:
        return
    query = arguments.get("query")
    asked = {query.run if query is not None else arguments.get("run")}
    if method == "attempts":
        ids = tuple(arguments["rollout_ids"])
        found = await store.rollouts(RolloutQuery(ids=ids)) if ids else []
        asked = {one.spec.run for one in found}
    elif method in ("attempt", "calls", "events"):
        attempts = arguments["attempt_ids"] if method == "events" else [arguments["attempt_id"]]
        asked = {(await store.attempt(one))[0].spec.run for one in attempts}
    if not asked <= runs:
        raise AuthError(f"this viewer's key shows these runs alone: {', '.join(sorted(runs))}")


_OF_EVERY_RUN = frozenset({"runs", "policies", "workers", "gateways", "now"})
"""What is asked of all runs at once; of the answer a viewer gets its own (`visible`)."""


def visible(access: Access, method: str, result: Any) -> Any:
    """What of a result its caller may see."""
    runs = access.runs
    if method == "runs" and runs is not None:
        return [run for run in result if run in runs]
    if method == "workers" and runs is not None:
        return [
            one if one.run is not None else replace(one, attempt_ids=())
            for one in result
            if one.run is None or one.run in runs
        ]
    if method == "policies" and access.scope is not Scope.ADMIN:
        return [_without_keys(one) for one in result if runs is None or one.run in runs]
    return result


def _without_keys(policy: Policy) -> Policy:
    return replace(policy, endpoints=tuple(replace(one, key=None) for one in policy.endpoints))


def check_version(headers: Mapping[bytes, bytes]) -> None:
    """Refuse a client of another version than this server's and the minor one before.

    A client that says no version is taken at its word that it speaks the same.

    Raises:
        ConfigError: the message names both versions.
    """
    given = headers.get(VERSION_HEADER.encode())
    if given is None:
        return
    client = given.decode(errors="replace")
    server = own_version()
    if client != server and not served_by(server, client):
        raise ConfigError(
            f"this server is LightningRL {server} and serves clients of that minor version and the"
            f" one before, not {client!r}; install the same version on both sides"
        )


def served_by(server: str, client: str) -> bool:
    """Whether a server of one version serves a client of another: `major.minor[.anything]`."""
    try:
        server_major, server_minor = (int(one) for one in server.split(".")[:2])
        client_major, client_minor = (int(one) for one in client.split(".")[:2])
    except ValueError:
        return False
    return server_major == client_major and 0 <= server_minor - client_minor <= 1
