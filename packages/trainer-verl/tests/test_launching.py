"""Where a run's ranks are, before any is started."""

from __future__ import annotations

import contextlib
import sys

from lightningrl.recipe import parse_recipe
from lightningrl_verl.start.launching import prepare_ground
from lightningrl_verl.worker.ranks import ThisProcess


async def test_without_a_cluster_they_are_in_this_process_and_ray_is_not_loaded() -> None:
    recipe = parse_recipe(
        {
            "name": "demo",
            "agent": "a:b",
            "policies": {"policy": {"model": "m", "max_model_len": 64}},
            "algorithm": {"iterations": 1, "tasks_per_iteration": 2, "group_size": 2},
        }
    )
    before = "lightningrl_verl.cluster.ray_ranks" in sys.modules
    async with contextlib.AsyncExitStack() as stack:
        ground = await prepare_ground(recipe, stack)
        assert isinstance(ground.launcher, ThisProcess)
        assert ("lightningrl_verl.cluster.ray_ranks" in sys.modules) == before
