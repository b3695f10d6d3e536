"""The gateways that share a store: which live, and which holds each has drained."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from lightningrl.schema import DrainedHold, GatewayProcess
from lightningrl.store.compression import unpack
from lightningrl.store.rows import instant, seconds_to_us
from lightningrl.store.session import Session, Wake

_FORGET_SECONDS = 24 * 3600.0
"""After this time the row of a gateway that was killed is removed."""

_decoder = msgspec.msgpack.Decoder(tuple[DrainedHold, ...])


def see(session: Session, name: str, drained: Sequence[DrainedHold]) -> None:
    """See `Store.see_gateway`."""
    now_us = session.now_us()
    packed = session.packed(list(drained))
    session.run("see_gateway", name=name, now_us=now_us, drained=packed)
    session.wakes.add(Wake.GATEWAY)


def forget(session: Session, name: str) -> None:
    """See `Store.forget_gateway`."""
    session.run("forget_gateway", name=name)
    before_us = session.now_us() - seconds_to_us(_FORGET_SECONDS)
    session.run("forget_gateways", before_us=before_us)
    session.wakes.add(Wake.GATEWAY)


def read(session: Session, seen_within_seconds: float) -> list[GatewayProcess]:
    """See `Store.gateways`; never waits."""
    since_us = session.now_us() - seconds_to_us(seen_within_seconds)
    return [
        GatewayProcess(name, instant(seen_us), _decoder.decode(unpack(drained)))
        for name, seen_us, drained in session.rows("gateways_seen_since", since_us=since_us)
    ]


def same(some: Sequence[GatewayProcess], others: Sequence[GatewayProcess]) -> bool:
    """Whether the same gateways have drained the same holds, whenever they were seen."""
    return [(one.name, one.drained) for one in some] == [(one.name, one.drained) for one in others]
