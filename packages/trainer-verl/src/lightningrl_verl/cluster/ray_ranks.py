"""Ranks in a Ray cluster: one `RayWorkerGroup` of verl's, which all models of a run share.

Invariant: a rank that has died fails the call under way and every later one by name; none hangs on it.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from lightningrl.errors import LightningError, RunError
from lightningrl.recipe import Critic, Engine, Trainer
from lightningrl_verl.cluster.ray_cluster import RayCluster, Room
from lightningrl_verl.machine.quiet import quiet
from lightningrl_verl.worker.backend_config import BackendConfig
from lightningrl_verl.worker.ranks import Ranks
from lightningrl_verl.worker.workers import select_platform

_ALIVE_SECONDS = 2.0
"""How often the ranks are asked whether they still live."""


class RayRanks:
    """The launcher of a run in a Ray cluster: every model has a shard on each of its ranks.

    Made on a thread that lives as long as the run; see `ray_cluster`.
    """

    def __init__(self, trainer: Trainer, address: str | None, engine: Engine | None = None) -> None:
        """Start Ray or join it, then the ranks' processes, spread evenly over `trainer.nodes` machines.

        Args:
            trainer: the recipe's.
            address: of the cluster. `None`: one is started.
            engine: the recipe's, for which room is needed if verl manages engines. `None`: it does not.

        Raises:
            ConfigError: the address is none that training can use, or the cluster has no room.
            RunError: Ray or the ranks do not come up.
        """
        room = Room.of(trainer, engine)
        self._cluster = RayCluster(address, room)
        try:
            self.group = self._start(trainer, room)
        except BaseException:
            self._cluster.close()
            raise
        self._names = itertools.count()

    def _start(self, trainer: Trainer, room: Room) -> Any:
        select_platform(trainer.device)
        self._cluster.check_room(trainer, room)
        with quiet():
            from verl.single_controller.ray import (
                RayClassWithInitArgs,
                RayResourcePool,
                RayWorkerGroup,
            )

            from lightningrl_verl.cluster.rank_worker import RankWorker
        per_node = trainer.ranks // trainer.nodes
        pool = RayResourcePool(
            [per_node] * trainer.nodes, use_gpu=trainer.device == "cuda", max_colocate_count=1
        )
        worker: Any = ray.remote(RankWorker)
        made = RayClassWithInitArgs(worker, device=trainer.device, threads=trainer.threads)
        with quiet():
            group: Any = _translated(lambda: RayWorkerGroup(pool, made, device_name=trainer.device))
        _translated(group.ping)
        return group

    def policy(self, config: BackendConfig) -> Ranks:
        """Load a policy on all ranks."""
        name = f"policy-{next(self._names)}"
        _translated(lambda: self.group.policy(name, self._spread(config)))
        return RayModel(self.group, name)

    def critic(self, config: BackendConfig, critic: Critic) -> Ranks:
        """Load a critic on all ranks."""
        name = f"critic-{next(self._names)}"
        _translated(lambda: self.group.critic(name, self._spread(config), critic))
        return RayModel(self.group, name)

    def _spread(self, config: BackendConfig) -> BackendConfig:
        return replace(config, ranks=self.group.world_size)

    async def watch(self) -> None:
        """Never return; raise when a rank has died.

        Raises:
            RunError: with what Ray says of it.
        """
        while True:
            await asyncio.sleep(_ALIVE_SECONDS)
            # They answer between two calls, and a death answers for them at once.
            pings = [asyncio.wrap_future(one.ping.remote().future()) for one in self.group.workers]
            try:
                await asyncio.gather(*pings)
            except RayActorError as error:
                raise _dead(error) from error
            except RayError as error:
                raise RunError(f"Ray failed: {error}") from error

    def abandon(self) -> None:
        """Kill the ranks; a call under way fails as if they had died."""
        for one in self.group.workers:
            ray.kill(one)

    def close(self) -> None:
        """End the ranks, and a Ray that was started for them."""
        self._cluster.close()


class RayModel:
    """`Ranks` of one model."""

    def __init__(self, group: Any, name: str) -> None:
        """Name a model on all workers of a `RayWorkerGroup`."""
        self.group = group
        self.name = name

    @property
    def size(self) -> int:
        """As `Ranks.size`."""
        return self.group.world_size

    def all(self, method: str, *arguments: Any) -> Any:
        """As `Ranks.all`."""
        return _translated(lambda: self.group.call(self.name, method, arguments))[0]

    def each(self, method: str, shares: Sequence[Any]) -> list[Any]:
        """As `Ranks.each`."""
        same = [[one] * self.size for one in (self.name, method)]
        return _translated(lambda: self.group.share(*same, list(shares)))

    def close(self) -> None:
        """As `Ranks.close`."""
        _translated(lambda: self.group.drop(self.name))


def _translated(function: Callable[[], Any]) -> Any:
    """Run it; errors are ours as they were raised on the rank, or say that the rank has died."""
    try:
        return function()
    except RayActorError as error:
        raise _dead(error) from error
    except RayTaskError as error:
        cause: object = error.cause
        if isinstance(cause, LightningError):
            raise cause from error
        raise RunError(f"a trainer rank failed: {error}") from error
    except RayError as error:
        raise RunError(f"Ray failed: {error}") from error


def _dead(error: RayActorError) -> RunError:
    return RunError(
        f"a trainer rank has died; the same command goes on from the last checkpoint. {error}"
    )
