"""Joining a Ray that runs already, on several machines; here two of Ray's nodes on one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import torch
from ray.cluster_utils import Cluster
from tiny_rows import sequences, write_model

from lightningrl.errors import ConfigError, RunError
from lightningrl.recipe import Optimiser, Trainer
from lightningrl_verl.cluster.ray_cluster import RayCluster, Room
from lightningrl_verl.cluster.ray_ranks import RayRanks
from lightningrl_verl.worker.backend import VerlBackend
from lightningrl_verl.worker.backend_config import BackendConfig

torch.set_num_threads(1)


def test_a_ray_client_is_refused() -> None:
    with pytest.raises(ConfigError, match="a Ray client can't place ranks"):
        RayCluster("ray://127.0.0.1:1", Room(1))


@pytest.mark.parametrize("address", ["127.0.0.1:1", "somewhere"])
def test_an_address_at_which_nobody_answers_is_named(address: str) -> None:
    with pytest.raises(RunError, match=f"no Ray at '{address}'"):
        RayCluster(address, Room(1))


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Two nodes with room for one rank each."""
    nodes = {"num_cpus": 1, "include_dashboard": False}
    one = Cluster(initialize_head=True, head_node_args=nodes)
    one.add_node(**nodes)
    yield one
    one.shutdown()


# Ray's nodes know each other by this machine's outward address.
@pytest.mark.beyond_loopback
@pytest.mark.long
def test_ranks_are_spread_over_machines_and_the_cluster_is_left_as_it_was(
    cluster: Cluster, tmp_path: Path
) -> None:
    config = BackendConfig(
        model_path=str(write_model(tmp_path, tied=False)),
        optimiser=Optimiser(learning_rate=1e-3),
        max_tokens_per_micro_batch=64,
    )
    with pytest.raises(ConfigError, match=r"need 2 CPU\(s\) on each, and the cluster's machines"):
        RayRanks(Trainer(ranks=2), cluster.address)
    ranks = RayRanks(Trainer(ranks=2, nodes=2), cluster.address)
    try:
        where = ray.get(
            [
                one.__ray_call__.remote(lambda _: ray.get_runtime_context().get_node_id())
                for one in ranks.group.workers
            ]
        )
        assert len(set(where)) == 2
        one, two = VerlBackend(config), VerlBackend(config, ranks)
        rows = sequences(5)
        before = one.log_probs(rows)
        alone, together = one.update(rows, before), two.update(rows, before)
        assert together == pytest.approx(alone, rel=1e-5, abs=1e-6)
    finally:
        ranks.close()
    again = RayCluster(cluster.address, Room(1))
    try:
        assert [node["Alive"] for node in ray.nodes()] == [True, True]
    finally:
        again.close()
