"""The gateway's side of policy control (`control` is the trainer's).

Invariant: with an admin key set, nothing here answers without it; an attempt key is never enough.
"""

from __future__ import annotations

from typing import TypeVar
from urllib.parse import unquote

import msgspec

from lightningrl.errors import AuthError, ConfigError, NotFound
from lightningrl.gateway.asgi import Answer, Headers, to_json
from lightningrl.gateway.control import (
    EndpointStatus,
    Held,
    Hold,
    PolicyStatus,
    Publish,
    Refused,
)
from lightningrl.gateway.health import Health
from lightningrl.gateway.identity import bearer
from lightningrl.gateway.policies import Policies, Served
from lightningrl.gateway.refusals import Refusals
from lightningrl.keys import AccessKeys, Scope
from lightningrl.schema import Policy
from lightningrl.user_input.names import suggest

T = TypeVar("T", bound=msgspec.Struct)


class ControlRoutes:
    """Answers what follows `/gateway/v1/`."""

    def __init__(
        self, policies: Policies, health: Health, keys: AccessKeys, refusals: Refusals
    ) -> None:
        self._policies = policies
        self._health = health
        self._keys = keys
        self._refusals = refusals

    async def answer(self, method: str, path: str, headers: Headers, body: bytes) -> Answer:
        """Answer one request; `path` is undecoded and without the prefix.

        Raises:
            LightningError: the request is refused; the class says why.
        """
        self.check_key(headers)
        match method, [unquote(part) for part in path.strip("/").split("/")]:
            case "GET", ["status"]:
                return _ok([self._status(served) for served in self._policies])
            case "GET", ["refused"]:
                origins = dict(self._refusals.unidentified)
                return _ok(Refused(sum(origins.values()), origins))
            case "GET", ["policies", run, name]:
                return _ok(self._status(self._policies.get(run, name)))
            case "POST", ["policies", run, name]:
                return _ok(await self._register(run, name, body))
            case "POST", ["policies", run, name, "hold"]:
                return _ok(await self._hold(run, name, body))
            case "POST", ["policies", run, name, "publish"]:
                version = _decode(body, Publish).version
                return _ok(await self._policies.publish(run, name, version))
            case "POST", ["policies", run, name, "release"]:
                return _ok(await self._policies.release(run, name))
            case _:
                raise NotFound(
                    f"policy control has no route {method} {path}; it has GET status, refused and"
                    " policies/{run}/{name}, POST policies/{run}/{name} and below it hold, publish,"
                    " release"
                )

    def check_key(self, headers: Headers) -> None:
        """Refuse who has not the admin key, where there is one.

        Raises:
            AuthError: the key is missing or wrong.
        """
        if self._keys.scope(bearer(headers)) is not Scope.ADMIN:
            raise AuthError(
                "policy control and metrics need the server's admin key as bearer token: set LIGHTNINGRL_KEY to"
                " the value of the server's LIGHTNINGRL_ADMIN_KEY"
            )

    async def _register(self, run: str, name: str, body: bytes) -> Policy:
        policy = _decode(body, Policy)
        if (policy.run, policy.name) != (run, name):
            raise ConfigError(
                f"the body is policy {policy.name!r} of run {policy.run!r}, the URL says {name!r} of"
                f" {run!r}"
            )
        return await self._policies.register(policy)

    async def _hold(self, run: str, name: str, body: bytes) -> Held:
        asked = _decode(body, Hold)
        stopped = await self._policies.hold(
            run, name, hold_seconds=asked.hold_seconds, drain_seconds=asked.drain_seconds
        )
        return Held(version=self._policies.get(run, name).policy.version, stopped=stopped)

    def _status(self, served: Served) -> PolicyStatus:
        policy = served.policy
        return PolicyStatus(
            run=policy.run,
            name=policy.name,
            version=policy.version,
            state=served.gate.state.value,
            in_flight=served.gate.in_flight,
            waiting=served.gate.waiting,
            endpoints=tuple(
                EndpointStatus(one.url, self._health.failures(one.url), self._health.is_up(one.url))
                for one in policy.endpoints
            ),
        )


def _decode(body: bytes, kind: type[T]) -> T:
    try:
        given = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        fields = {one.encode_name for one in msgspec.structs.fields(kind)}
        for name in given.keys() - fields:
            raise ConfigError(f"{kind.__name__} has no field {name!r}.{suggest(name, fields)}")
        return msgspec.json.decode(body, type=kind)
    except msgspec.DecodeError as error:
        raise ConfigError(f"the body is no {kind.__name__}: {error}") from error


def _ok(value: object) -> Answer:
    return Answer(200, to_json(value))
