"""Policies by run and name. Invariant: the version of a policy never goes down."""

from __future__ import annotations

import msgspec

from lightningrl.errors import Conflict
from lightningrl.schema import Policy
from lightningrl.store.compression import unpack
from lightningrl.store.session import Session

_decoder = msgspec.msgpack.Decoder(Policy)


def read(session: Session, run: str | None) -> list[Policy]:
    """See `Store.policies`."""
    return [_decoder.decode(unpack(blob)) for (blob,) in session.rows("policies", run=run)]


def put(session: Session, policy: Policy) -> None:
    """See `Store.put_policy`."""
    row = session.row("policy_version", run=policy.run, name=policy.name)
    if row is not None and policy.version < row[0]:
        raise Conflict(
            f"policy {policy.name!r} of run {policy.run!r} is at version {row[0]}, which can't go "
            f"back to {policy.version}; a version number is never used for two sets of weights"
        )
    session.run(
        "put_policy",
        run=policy.run,
        name=policy.name,
        version=policy.version,
        policy=session.packed(policy),
    )
