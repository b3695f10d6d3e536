"""Keys: who may do what at a server.

Four kinds. An *admin* key may do everything. A *runner* key may lease rollouts and report on them. A *viewer*
key reads, all runs or those that it names. An *attempt* key lets one attempt's agent call models, and nothing
else. All but the last are chosen by the operator; there may be several of each at a time, so that they can be
changed without a pause.

Invariant: keys are compared in constant time, and no message contains one.

An attempt key is `lrk1.<attempt id>.<expiry, unix seconds>.<signature>`, signed by HMAC-SHA256 with the
store's secret, so that any server of the store can check it without a look-up.
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

import msgspec

from lightningrl.errors import AuthError
from lightningrl.schema import AttemptId

_PREFIX = "lrk1"


class Scope(StrEnum):
    """What a key of the operator's allows."""

    ADMIN = "admin"
    RUNNER = "runner"
    VIEWER = "viewer"


class ViewerKey(NamedTuple):
    """A key that reads."""

    key: str
    runs: frozenset[str] | None = None
    """Names of the runs that it shows. `None`: all."""

    @classmethod
    def read(cls, text: str) -> ViewerKey:
        """A key as the operator writes it: `KEY`, or `KEY RUN RUN`."""
        key, *runs = text.split()
        return cls(key, frozenset(runs) or None)


class Access(NamedTuple):
    """What a request may do."""

    scope: Scope
    runs: frozenset[str] | None = None
    """Of which runs alone. `None`: of all."""


class AccessKeys(msgspec.Struct, frozen=True):
    """The keys that a server takes."""

    admin: tuple[str, ...] = ()
    """Empty: everyone is an admin, which only a server on a loopback address may say."""
    runner: tuple[str, ...] = ()
    viewer: tuple[ViewerKey, ...] = ()

    def access(self, given: str | None) -> Access | None:
        """What a request with the bearer token `given` may do. `None`: nothing."""
        if not self.admin:
            return Access(Scope.ADMIN)
        token = (given or "").encode(errors="replace")
        if _is_one_of(token, self.admin):
            return Access(Scope.ADMIN)
        if _is_one_of(token, self.runner):
            return Access(Scope.RUNNER)
        return viewer_access(self.viewer, given)

    def scope(self, given: str | None) -> Scope | None:
        """The scope of the bearer token `given`. `None`: it may do nothing."""
        found = self.access(given)
        return None if found is None else found.scope


def viewer_access(keys: Sequence[ViewerKey], given: str | None) -> Access | None:
    """What somebody with the key `given` may see; of a key that stands several times what all say. `None`: nothing."""
    token = (given or "").encode(errors="replace")
    # All are looked at; see `_is_one_of`.
    found = [one.runs for one in keys if hmac.compare_digest(token, one.key.encode())]
    if not found:
        return None
    named = [runs for runs in found if runs is not None]
    return Access(Scope.VIEWER, frozenset().union(*named) if len(named) == len(found) else None)


def _is_one_of(token: bytes, keys: tuple[str, ...]) -> bool:
    # All are looked at, so that the time does not say which one it was.
    found = [hmac.compare_digest(token, key.encode()) for key in keys]
    return any(found)


OPEN = AccessKeys()
"""No keys: everyone is an admin."""


def _signature(secret: bytes, attempt_id: str, expiry: str) -> str:
    text = f"{_PREFIX}.{attempt_id}.{expiry}".encode(errors="replace")
    digest = hmac.digest(secret, text, "sha256")
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def sign_attempt_key(secret: bytes, attempt_id: AttemptId, expires_at: datetime) -> str:
    """The key of one attempt, valid until `expires_at`."""
    expiry = str(int(expires_at.timestamp()))
    return f"{_PREFIX}.{attempt_id}.{expiry}.{_signature(secret, attempt_id, expiry)}"


class CheckedKey(NamedTuple):
    """An attempt key that this store signed; it may have expired."""

    attempt_id: AttemptId
    expires_at: float
    """Unix seconds."""

    def refuse_expired(self, now: datetime) -> None:
        """Refuse it after its time.

        Raises:
            AuthError: it has expired.
        """
        if now.timestamp() > self.expires_at:
            raise AuthError(f"the key for attempt {self.attempt_id!r} has expired")


def check_attempt_key(secret: bytes, key: str) -> CheckedKey:
    """What `key` says, whose signature is good.

    Raises:
        AuthError: it is no attempt key, or was not signed by this store. The message never contains the
            key.
    """
    parts = key.split(".")
    if len(parts) != 4 or parts[0] != _PREFIX:
        raise AuthError("this is not an attempt key; the runner sets the right one for each agent")
    _, attempt_id, expiry, signature = parts
    # As bytes: texts beyond ASCII, which anyone may send, can't be compared.
    expected = _signature(secret, attempt_id, expiry).encode()
    if not hmac.compare_digest(signature.encode(errors="replace"), expected):
        raise AuthError(f"the key for attempt {attempt_id!r} was not signed by this store")
    return CheckedKey(AttemptId(attempt_id), float(expiry))
