"""The engines of one policy that verl manages: its `LLMServerManager` and `CheckpointEngineManager`.

Everything here blocks, and runs on the learners' thread, but for `watch` and `close`. Invariant: engines that
share the ranks' devices are asleep from `sleep` until `take_weights` has given them all weights.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from lightningrl.errors import LightningError, RunError
from lightningrl_verl.cluster.ray_ranks import RayModel
from lightningrl_verl.machine.quiet import quiet
from lightningrl_verl.worker.backend_config import BackendConfig, compose_verl_config

_ALIVE_SECONDS = 2.0
"""How often the engines' processes are asked whether they still live."""

_Result = TypeVar("_Result")


class RayEngines:
    """Started, and without weights that anybody should ask for."""

    def __init__(self, model: RayModel, config: BackendConfig) -> None:
        """Start them, as `config.rollout` says.

        Args:
            model: the policy on its ranks, which were built with the same `config`.
            config: with a `rollout`.

        Raises:
            RunError: an engine does not come up.
        """
        assert config.rollout is not None
        self._colocated = config.rollout.colocated
        composed = compose_verl_config(config)
        model.all("free_cache")
        with quiet():
            from verl.checkpoint_engine.base import CheckpointEngineManager
            from verl.utils.config import omega_conf_to_dataclass
            from verl.workers.rollout.llm_server import LLMServerManager

            from lightningrl_verl.cluster import registered

            del registered
            group = model.group if self._colocated else None
            self._manager: Any = _translated(
                lambda: LLMServerManager.create(composed, worker_group=group)
            )
        settings: Any = omega_conf_to_dataclass(
            composed.actor_rollout_ref.rollout.checkpoint_engine
        )
        senders: Any = _Senders(model)
        # Its methods are coroutines by their types alone: without a loop they run to their end.
        self._sync: Any = CheckpointEngineManager(settings, senders, self._manager.get_replicas())

    @property
    def urls(self) -> list[str]:
        """Where they serve, without `/v1`."""
        return [f"http://{address}" for address in self._manager.get_addresses()]

    def sleep(self) -> None:
        """Have them give their devices' memory to the ranks.

        Raises:
            RunError: one has died.
        """
        _translated(self._sync.sleep_replicas)

    def take_weights(self, version: int) -> None:
        """Give them the ranks' weights, and wake up those that sleep.

        Raises:
            RunError: one has died, or refuses them.
        """
        _translated(lambda: self._sync.update_weights(global_steps=version))

    async def watch(self) -> None:
        """Never return; raise when the process of an engine has died.

        Raises:
            RunError: with what Ray says of it.
        """
        while True:
            await asyncio.sleep(_ALIVE_SECONDS)
            asked = [one.get_server_address.remote().future() for one in self._servers]
            asked += [one.get_replica_rank.remote().future() for one in self._receivers]
            try:
                await asyncio.gather(*map(asyncio.wrap_future, asked))
            except RayActorError as error:
                raise _dead(error) from error
            except RayError as error:
                raise RunError(f"Ray failed: {error}") from error

    def close(self) -> None:
        """End them; may be called from any thread, and at any time.

        A rank waits for an engine that died while it was given weights; it ends by `RayRanks.abandon`.
        """
        for one in [*self._servers, *self._receivers]:
            with contextlib.suppress(RayError):
                ray.kill(one)

    @property
    def _servers(self) -> Sequence[Any]:
        return [server for replica in self._manager.get_replicas() for server in replica.servers]

    @property
    def _receivers(self) -> Sequence[Any]:
        """The processes that receive weights for engines which share no device with a rank."""
        if self._colocated:
            return ()
        return [worker for replica in self._manager.get_replicas() for worker in replica.workers]


class _Senders:
    """A policy's ranks as `CheckpointEngineManager` calls those that send."""

    def __init__(self, model: RayModel) -> None:
        self._group = model.group
        self._name = model.name
        self.world_size: int = model.size

    def update_weights(self, global_steps: int, mode: str) -> list[Any]:
        return self._group.send_weights(self._name, global_steps, mode)

    def execute_checkpoint_engine(self, method: list[str], **arguments: list[Any]) -> list[Any]:
        names = [self._name] * self.world_size
        return self._group.checkpoint_engine(names, method, **arguments)


def _translated(function: Callable[[], _Result]) -> _Result:
    """Run it; errors are ours as they were raised, or say what has died."""
    try:
        return function()
    except RayTaskError as error:
        cause: object = error.cause
        if isinstance(cause, LightningError):
            raise cause from error
        if isinstance(cause, RayActorError):
            raise _dead(cause) from error
        raise RunError(f"the engines that verl manages failed: {error}") from error
    except RayActorError as error:
        raise _dead(error) from error
    except RayError as error:
        raise RunError(f"Ray failed: {error}") from error


def _dead(error: RayActorError) -> RunError:
    return RunError(
        "an engine, or a rank that it takes weights from, has died; the same command goes on from the last"
        f" checkpoint. {error}"
    )
