"""Named resources, every version of them. Invariant: a version is written once and never changes."""

from __future__ import annotations

from typing import Any

import msgspec

from lightningrl.errors import Conflict, NotFound
from lightningrl.schema import NewRollout, Resource
from lightningrl.store import rows
from lightningrl.store.session import Session


def put(
    session: Session, run: str, name: str, value: Any, ident: str | None, now_us: int
) -> Resource:
    """See `Store.put_resource`."""
    value = msgspec.msgpack.decode(msgspec.msgpack.encode(value))  # as it will be read
    latest = session.row("latest_resource", run=run, name=name)
    same = latest
    if ident is not None:
        same = session.row("resource_by_id", run=run, name=name, id=ident)
        if same is not None and rows.resource(same).value != value:
            raise Conflict(
                f"resource {name!r} of run {run!r} has the id {ident!r} already, with another value; "
                "give the new value an id of its own"
            )
    elif latest is not None and rows.resource(latest).value != value:
        same = None
    if same is not None:
        return rows.resource(same)
    version = 1 if latest is None else rows.resource(latest).version + 1
    session.run(
        "insert_resource",
        run=run,
        name=name,
        version=version,
        id=ident,
        now_us=now_us,
        value=session.packed(value),
    )
    return Resource(run, name, version, value, rows.instant(now_us), ident)


def read(session: Session, run: str, name: str, version: int | None) -> Resource:
    """See `Store.resource`."""
    if version is None:
        row = session.row("latest_resource", run=run, name=name)
    else:
        row = session.row("resource_version", run=run, name=name, version=version)
    if row is None:
        raise _not_found(run, name, version)
    return rows.resource(row)


def _not_found(run: str, name: str, version: int | None) -> NotFound:
    which = "resource" if version is None else f"version {version} of the resource"
    return NotFound(f"run {run!r} has no {which} {name!r}; put it with `put_resource`")


def listed(session: Session, run: str, name: str | None) -> list[Resource]:
    """See `Store.resources`."""
    if name is None:
        return [rows.resource(row) for row in session.rows("latest_resources", run=run)]
    return [rows.resource(row) for row in session.rows("resource_versions", run=run, name=name)]


def check_pins(session: Session, new: NewRollout) -> None:
    """Refuse a rollout that is pinned to what is not there.

    Raises:
        NotFound: its run has no such resource, or not that version of it.
    """
    for name, version in new.resources.items():
        place = {"run": new.run, "name": name, "version": version}
        if session.row("resource_to_pin", **place) is None:
            raise _not_found(new.run, name, version)


def pinned(session: Session, spec: NewRollout) -> tuple[Resource, ...]:
    """What a rollout's claim hands over, by name.

    Raises:
        NotFound: a resource was deleted meanwhile.
    """
    if not spec.resources:
        return ()
    return tuple(
        read(session, spec.run, name, version) for name, version in sorted(spec.resources.items())
    )
