"""Policies by run and name.

Invariants: the version of a policy never goes down, and of several who change one policy at once, each
knowing what it was, one wins.
"""

from __future__ import annotations

import msgspec

from lightningrl.errors import Conflict
from lightningrl.schema import Policy
from lightningrl.store.compression import unpack
from lightningrl.store.session import Session, Wake

_decoder = msgspec.msgpack.Decoder(Policy)


def read(session: Session, run: str | None) -> list[Policy]:
    """See `Store.policies`; never waits."""
    return [_decoder.decode(unpack(blob)) for (blob,) in session.rows("policies", run=run)]


def put(session: Session, policy: Policy, if_was: Policy | None) -> None:
    """See `Store.put_policy`."""
    row = session.row("policy_to_change", run=policy.run, name=policy.name)
    stored = None if row is None else _decoder.decode(unpack(row[0]))
    if stored == policy:
        return
    if if_was is not None and stored != if_was:
        raise Conflict(
            f"policy {policy.name!r} of run {policy.run!r} was changed meanwhile; read it anew, then "
            "decide again"
        )
    if stored is not None and policy.version < stored.version:
        raise Conflict(
            f"policy {policy.name!r} of run {policy.run!r} is at version {stored.version}, which "
            f"can't go back to {policy.version}; a version number is never used for two sets of weights"
        )
    put = session.run(
        "put_policy",
        run=policy.run,
        name=policy.name,
        version=policy.version,
        policy=session.packed(policy),
    )
    if not put:
        raise Conflict(
            f"policy {policy.name!r} of run {policy.run!r} was just created with a version above "
            f"{policy.version}; read it anew"
        )
    session.wakes.add(Wake.POLICY)
