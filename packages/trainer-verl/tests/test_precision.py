"""In which precision a run computes, and what the probe then asks of an engine."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightningrl.recipe import LoadedRecipe, parse_recipe
from lightningrl.schema import RewriteRules
from lightningrl_verl.engine.weights import digest
from lightningrl_verl.serving.policy import ServedPolicy
from lightningrl_verl.serving.probe import WeightMismatch
from lightningrl_verl.start.precision import faster, settle

torch.set_num_threads(1)


def loaded(**changes: Any) -> LoadedRecipe:
    tree: dict[str, Any] = {
        "name": "demo",
        "agent": "a:b",
        "policies": {"policy": {"model": "m"}},
        "algorithm": {"iterations": 1, "tasks_per_iteration": 2, "group_size": 2},
        "optimiser": {"learning_rate": 0.1},
    }
    for key, value in changes.items():
        tree[key] = {**tree.get(key, {}), **value}
    return LoadedRecipe(parse_recipe(tree), Path("recipe.yaml"))


def settled(**changes: Any) -> tuple[str, str | None, str | None]:
    one, said = settle(loaded(**changes))
    recipe = one.recipe
    assert recipe.algorithm is not None
    return recipe.trainer.precision, recipe.algorithm.importance, said


def test_what_a_recipe_says_is_what_is_used() -> None:
    assert settled() == ("fp32", "none", None)
    assert settled(trainer={"dtype": "bf16"}) == ("bf16", "token", None)
    explicit = {"importance": "none"}
    assert settled(trainer={"dtype": "bf16"}, algorithm=explicit) == ("bf16", "none", None)
    gspo = {"loss": "gspo", "rows": "calls"}
    assert settled(trainer={"dtype": "bf16"}, algorithm=gspo) == ("bf16", "sequence", None)


def test_the_machine_decides_where_the_recipe_leaves_it_to_it() -> None:
    dtype, why = faster("cpu")
    assert "times as fast in bf16 as in fp32" in why
    found, importance, said = settled(trainer={"dtype": "auto"})
    assert found in ("fp32", "bf16")
    assert importance == ("none" if found == "fp32" else "token")
    assert said is not None
    assert said.startswith(f"trainer.dtype: auto is {found}: ")
    assert dtype in ("fp32", "bf16")


class Trainer:
    """A learner and its backend, whose log-probs are 0."""

    vocabulary = 50
    weight = torch.ones(4)

    async def call(self, function: Any) -> Any:
        return function(self)

    def named_parameters(self) -> Any:
        return iter([("weight", self.weight)])

    def log_probs(self, rows: Any, temperature: float | None = None) -> Any:
        return [np.zeros(len(row.token_ids), np.float32) for row in rows]


class Engines:
    """They hold `weight`, and score tokens by `gap`; without weights they can't tell what they hold."""

    def __init__(self, weight: torch.Tensor | None, gap: float) -> None:
        self.weight, self.gap = weight, gap
        self.can_tell = weight is not None

    async def digests(self, names: Any) -> Any:
        assert self.weight is not None
        return [digest([("weight", self.weight.to(torch.bfloat16))])]

    def scorers(self) -> Any:
        return (lambda _, tokens: [-self.gap] * len(tokens),)


def served(engines: Engines, **trainer: Any) -> ServedPolicy:
    recipe = loaded(trainer={"dtype": "bf16", **trainer}).recipe
    return ServedPolicy(recipe, "policy", None, engines, RewriteRules())  # type: ignore[arg-type]


async def test_in_bf16_the_limit_is_three_times_what_the_first_probe_found() -> None:
    engines = Engines(torch.ones(4), 0.5)
    policy = served(engines)
    assert (await policy.probe(Trainer())).max_abs_difference == 0.5  # type: ignore[arg-type]
    engines.gap = 1.5
    await policy.probe(Trainer())  # type: ignore[arg-type]
    engines.gap = 1.6
    with pytest.raises(WeightMismatch, match=r"differ by 1.6 nats .*tolerance 1.5"):
        await policy.probe(Trainer())  # type: ignore[arg-type]


async def test_other_weights_are_refused_however_small_the_gap_is() -> None:
    one_update_ago = torch.ones(4) * (1 + 2**-7)
    with pytest.raises(WeightMismatch, match="digests differ"):
        await served(Engines(one_update_ago, 0.0)).probe(Trainer())  # type: ignore[arg-type]


async def test_an_engine_that_cannot_tell_is_judged_by_the_gap_alone() -> None:
    await served(Engines(None, 0.09)).probe(Trainer())  # type: ignore[arg-type]
    with pytest.raises(WeightMismatch, match=r"tolerance 0\.1"):
        await served(Engines(None, 0.11)).probe(Trainer())  # type: ignore[arg-type]
    assert math.isinf(served(Engines(None, 0))._tolerance(known=True))


async def test_a_tolerance_that_the_recipe_names_holds_from_the_first_probe_on() -> None:
    with pytest.raises(WeightMismatch, match=r"tolerance 0\.2"):
        await served(Engines(torch.ones(4), 0.3), probe_tolerance=0.2).probe(Trainer())  # type: ignore[arg-type]
