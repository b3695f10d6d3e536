"""A whole gateway on a loopback port, over a real SQLite store: what adapter and gateway tests call.

Gateway, store and test share one event loop; agents may call from anywhere. Rollouts are made and
claimed as a runner would.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvicorn

from lightningrl.gateway import Gateway, GatewayClient, GatewayLimits
from lightningrl.gateway.observe import Observer
from lightningrl.keys import AccessKeys
from lightningrl.machine.clock import Clock, SystemClock
from lightningrl.machine.connections import KEEP_ALIVE_SECONDS
from lightningrl.schema import (
    CallEvent,
    Claim,
    Endpoint,
    Fork,
    Mode,
    NewRollout,
    Policy,
    RewardsFrom,
    RewriteRules,
    Sampling,
    group_id,
    rollout_id,
)
from lightningrl.store.base import Store
from lightningrl.store.sqlite import SqliteStore

NO_RULES = RewriteRules()

RUN = "run"
"""The run of all rollouts that a rig makes."""


class GatewayRig:
    """A served gateway with its store."""

    def __init__(self, store: Store, gateway: Gateway, url: str) -> None:
        self.store = store
        self.gateway = gateway
        self.url = url
        """The server's, without a path."""
        self._made = 0

    def control(self, key: str | None = None) -> GatewayClient:
        """Policy control, as a trainer has it."""
        return GatewayClient(self.url, key)

    async def register(
        self,
        *engines: str,
        name: str = "policy",
        version: int = 0,
        replaces: tuple[str, ...] = (),
        agents: tuple[str, ...] = (),
        rules: RewriteRules = NO_RULES,
        max_model_len: int | None = None,
        refuse_unknown: bool = False,
    ) -> Policy:
        """Register a policy of `RUN` that `engines` (base URLs) serve."""
        policy = Policy(
            name=name,
            run=RUN,
            version=version,
            endpoints=tuple(Endpoint(url) for url in engines),
            replaces=replaces,
            agents=agents,
            rules=rules,
            max_model_len=max_model_len,
            refuse_unknown=refuse_unknown,
        )
        async with self.control() as control:
            return await control.register(policy)

    async def claim(
        self,
        sampling: Sampling | None = None,
        *,
        timeout_seconds: float = 600.0,
        rewards: RewardsFrom = RewardsFrom.JUDGED,
        fork: Fork | None = None,
        replay_staleness: int | None = None,
    ) -> Claim:
        """A new rollout with its running attempt."""
        self._made += 1
        task_id = f"task-{self._made}"
        group = group_id(RUN, Mode.TRAIN, 1, task_id)
        spec = NewRollout(
            id=rollout_id(group, 0),
            run=RUN,
            mode=Mode.TRAIN,
            iteration=1,
            task_id=task_id,
            group_id=group,
            member=0,
            task={},
            sampling=sampling,
            timeout_seconds=timeout_seconds,
            rewards=rewards,
            fork=fork,
            replay_staleness=replay_staleness,
        )
        await self.store.enqueue([spec])
        [claim] = await self.store.claim("rig", lease_seconds=600)
        return claim

    def attempt_url(self, claim: Claim) -> str:
        """The base URL that names the attempt."""
        return f"{self.url}/rollouts/{claim.rollout.id}/attempts/{claim.attempt.id}/v1"

    async def calls(self, claim: Claim) -> list[CallEvent]:
        """The attempt's recorded calls in order of arrival."""
        [events] = await self.store.events([claim.attempt.id])
        return [event for event in events if isinstance(event, CallEvent)]


@asynccontextmanager
async def serve(app: Any) -> AsyncGenerator[str]:
    """Serve an ASGI application on a loopback port in this event loop; yields its URL."""
    config = uvicorn.Config(
        app,
        interface="asgi3",
        http="httptools",
        ws="none",
        lifespan="off",
        log_level="error",
        access_log=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
    )
    server = uvicorn.Server(config)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1024)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await serving


@asynccontextmanager
async def open_rig(
    folder: Path,
    *,
    limits: GatewayLimits | None = None,
    require_keys: bool = True,
    admin_key: str | None = None,
    clock: Clock | None = None,
    observers: Sequence[Observer] = (),
) -> AsyncGenerator[GatewayRig]:
    """A rig whose store is in `folder`; opening the same folder again is a restart.

    `clock` is the machine's own unless given.
    """
    clock = clock or SystemClock()
    store = SqliteStore.open(folder / "store.db", clock=clock)
    gateway = Gateway(
        store,
        clock=clock,
        limits=limits,
        require_keys=require_keys,
        keys=AccessKeys() if admin_key is None else AccessKeys(admin=(admin_key,)),
        observers=observers,
    )
    await gateway.start()
    try:
        async with serve(gateway) as url:
            yield GatewayRig(store, gateway, url)
    finally:
        await gateway.close()
        await store.close()
