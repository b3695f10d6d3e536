"""Attempt keys: what lets one attempt's agent call models, and nothing else.

A key is `lrk1.<attempt id>.<expiry, unix seconds>.<signature>`, signed by HMAC-SHA256 with the
store's secret, so that any server of the store can check it without a look-up.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from datetime import datetime

from lightningrl.errors import AuthError
from lightningrl.schema import AttemptId

_PREFIX = "lrk1"


def _signature(secret: bytes, attempt_id: str, expiry: str) -> str:
    text = f"{_PREFIX}.{attempt_id}.{expiry}".encode(errors="replace")
    digest = hmac.new(secret, text, hashlib.sha256).digest()
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def sign_attempt_key(secret: bytes, attempt_id: AttemptId, expires_at: datetime) -> str:
    """The key of one attempt, valid until `expires_at`."""
    expiry = str(int(expires_at.timestamp()))
    return f"{_PREFIX}.{attempt_id}.{expiry}.{_signature(secret, attempt_id, expiry)}"


def check_attempt_key(secret: bytes, key: str, now: datetime) -> AttemptId:
    """The attempt that `key` belongs to.

    Raises:
        AuthError: it is no attempt key, was not signed by this store, or has expired. The message
            never contains the key.
    """
    parts = key.split(".")
    if len(parts) != 4 or parts[0] != _PREFIX:
        raise AuthError("this is not an attempt key; the runner sets the right one for each agent")
    _, attempt_id, expiry, signature = parts
    # As bytes: texts beyond ASCII, which anyone may send, can't be compared.
    expected = _signature(secret, attempt_id, expiry).encode()
    if not hmac.compare_digest(signature.encode(errors="replace"), expected):
        raise AuthError(f"the key for attempt {attempt_id!r} was not signed by this store")
    if now.timestamp() > float(expiry):
        raise AuthError(f"the key for attempt {attempt_id!r} has expired")
    return AttemptId(attempt_id)
