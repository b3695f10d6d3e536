"""A Ray of our own on this machine, or a place in one that runs already.

Invariants: nothing is sent anywhere (no usage report, no dashboard); a local Ray listens on loopback alone, and
nothing of it is left once its driver has ended. Ray's processes have the kernel end them with the *thread* that
started them (`ray/_private/services.py`, PR_SET_PDEATHSIG), so this is used on a thread that lives as long as the
run. After `kill -9` of the driver two small agents try to report it for a minute before they end as well
(`ray/_private/process_watcher.py`), and the next start removes its folder.
"""

from __future__ import annotations

import os
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path

import ray
from ray._private import ray_constants

from lightningrl.errors import ConfigError, RunError
from lightningrl.recipe import Engine, Trainer
from lightningrl_verl.machine.passing_folder import PassingFolder
from lightningrl_verl.machine.quiet import quiet

_KNOCK_SECONDS = 10.0

_FOLDER = "ray-lrl-"
"""Short, for the paths of Ray's sockets begin with it, and may have 107 characters in all."""


@dataclass(frozen=True)
class Room:
    """What a run asks Ray for."""

    cores: int
    """Of a Ray that is started for it. They are what Ray counts, not what processes get."""
    engine_devices: int = 0
    """GPUs of engines that share none with a rank; on a CPU they are counted and not there."""
    on_gpus: bool = False
    """Whether the run's devices are this machine's GPUs."""

    @classmethod
    def of(cls, trainer: Trainer, engine: Engine | None) -> Room:
        """That of a run, whose engines verl manages or not (`None`)."""
        on_gpus = trainer.device == "cuda"
        if engine is None or not engine.managed:
            return cls(trainer.ranks, on_gpus=on_gpus)
        alone = engine.placement == "separate"
        devices = engine.replicas * engine.tensor_parallel if alone else 0
        # verl's pool of an engine has two cores a device (`workers/rollout/replica.py:201`). Of what else it starts
        # (servers, a load balancer) each needs a core until it is placed.
        return cls(trainer.ranks + 2 * devices + 1, devices, on_gpus)


class RayCluster:
    """A connection to Ray, as the one driver of this process."""

    def __init__(self, address: str | None, room: Room) -> None:
        """Start a local Ray with that room, or join the one at an address.

        Raises:
            ConfigError: the address is none that training can use.
            RunError: Ray doesn't start, or nobody answers at the address.
        """
        if address is not None and address.startswith("ray://"):
            raise ConfigError(
                "cluster_address: a Ray client can't place ranks; start the run on a machine of the"
                " cluster, with 'auto' or the head's HOST:PORT"
            )
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        # Ray takes this machine's outward address even where it is given a loopback one, unless it is told
        # that there are no clusters, as it is by default on some systems (`get_node_ip_address`).
        ray_constants.ENABLE_RAY_CLUSTER = address is not None
        # For a driver under `uv run` Ray would build the workers' environments anew, and wait for them without
        # end. (It reads the variable of this name when it is imported, which was before.)
        ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV = False
        self._folder: PassingFolder | None = None
        try:
            # GPUs that are there Ray counts by itself; a run on CPUs needs as many as it says, whatever is there.
            counted = None if room.on_gpus else room.engine_devices
            with quiet():
                if address is None:
                    self._folder = PassingFolder(Path(tempfile.gettempdir()), _FOLDER)
                    ray.init(
                        "local",
                        num_cpus=room.cores,
                        num_gpus=counted,
                        include_dashboard=False,
                        log_to_driver=False,
                        configure_logging=False,
                        _temp_dir=str(self._folder.path),
                    )
                else:
                    _knock(address)
                    ray.init(address, log_to_driver=False, configure_logging=False)
        except (OSError, RuntimeError, ValueError) as error:
            self.close()
            where = "on this machine" if address is None else f"at {address!r}"
            raise RunError(f"no Ray {where}: {error}") from error

    def check_room(self, trainer: Trainer, room: Room) -> None:
        """Refuse what would wait for ever.

        Raises:
            ConfigError: the cluster has too few machines with enough GPUs (or CPUs), or too few GPUs for engines
                of their own.
        """
        kind = "GPU" if trainer.device == "cuda" else "CPU"
        per_node = trainer.ranks // trainer.nodes
        there = [node["Resources"].get(kind, 0) for node in ray.nodes() if node["Alive"]]
        if sum(one >= per_node for one in there) < trainer.nodes:
            raise ConfigError(
                f"trainer.ranks: {trainer.ranks} ranks on {trainer.nodes} machine(s) need {per_node}"
                f" {kind}(s) on each, and the cluster's machines have {there}; set fewer"
                " 'trainer.ranks', or another 'trainer.nodes'"
            )
        taken = trainer.ranks if trainer.device == "cuda" else 0
        gpus = sum(node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"])
        if gpus < taken + room.engine_devices:
            raise ConfigError(
                f"engine.replicas: engines of their own need {room.engine_devices} GPU(s) beside the"
                f" ranks' {taken}, and the cluster has {gpus:g}; set fewer, or 'engine.placement: colocated'"
            )

    def close(self) -> None:
        """End the local Ray, or leave the one that was joined."""
        ray.shutdown()
        if self._folder is not None:
            self._folder.close()


def _knock(address: str) -> None:
    """Find out whether somebody listens; Ray would try for many minutes.

    Raises:
        OSError: nobody does.
        ValueError: it is no `HOST:PORT`.
    """
    if address != "auto":
        host, _, port = address.rpartition(":")
        socket.create_connection((host, int(port)), timeout=_KNOCK_SECONDS).close()
