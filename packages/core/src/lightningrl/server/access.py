"""What each key may do with the store, and which clients are served.

Invariant: a method that is not listed for runners needs an admin's key; a new one of the contract is the
admin's until somebody lists it here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from lightningrl.errors import AuthError, ConfigError
from lightningrl.keys import Scope
from lightningrl.schema import TERMINAL, Mode, Policy
from lightningrl.store.records import RolloutDump
from lightningrl.store.wire import VERSION_HEADER, own_version

RUNNER_METHODS = frozenset(
    {
        *("claim", "heartbeat", "append", "finish", "enqueue"),
        *("attempt", "attempts", "events", "policies", "resource", "rollouts", "now"),
        "load",
    }
)
"""What a runner needs. It enqueues and loads live rollouts alone, and sees no key of an engine."""

_NEEDS_KEY = (
    "the store needs the server's admin key (for runners, its runner key) as a bearer token; "
    "set LIGHTNINGRL_KEY"
)


def check_method(scope: Scope | None, method: str) -> None:
    """Refuse who may not call `method`.

    Raises:
        AuthError: the key is missing or wrong, or a runner's where an admin's is needed.
    """
    if scope is None:
        raise AuthError(_NEEDS_KEY)
    if scope is Scope.RUNNER and method not in RUNNER_METHODS:
        raise AuthError(
            f"a runner's key can't call {method!r}; set LIGHTNINGRL_KEY to the server's admin key"
        )


def check_arguments(scope: Scope | None, method: str, arguments: Mapping[str, Any]) -> None:
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


def visible(scope: Scope | None, method: str, result: Any) -> Any:
    """What of a result its caller may see."""
    if scope is Scope.RUNNER and method == "policies":
        return [_without_keys(policy) for policy in result]
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
