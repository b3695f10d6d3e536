"""Recipes are checked before anything starts: every wrong key or value is named."""

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightningrl.errors import ConfigError
from lightningrl.recipe import (
    LoadedRecipe,
    PolicyRecipe,
    Trainer,
    changed_keys,
    dump_recipe,
    load_recipe,
    parse_recipe,
)
from lightningrl.recipe.presets import PRESETS

RECIPE = """
name: arithmetic
agent: my_agents:solve
reward: my_agents:score
data:
  train: {source: tasks.jsonl, limit: 64}
policies:
  policy: {tiny: "my_agents:policy", tool_parser: compact}
algorithm: {iterations: 10, tasks_per_iteration: 8, group_size: 4}
optimiser: {learning_rate: 1.0e-3}
"""


def load(tmp_path: Path, text: str = RECIPE, *overrides: str) -> LoadedRecipe:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return load_recipe(path, overrides)


def test_what_the_recipe_says_is_read_and_the_rest_has_defaults(tmp_path: Path) -> None:
    recipe = load(tmp_path).recipe
    assert recipe.name == "arithmetic"
    assert recipe.data is not None
    assert recipe.data.train.limit == 64
    assert recipe.algorithm is not None
    assert (recipe.algorithm.group_size, recipe.algorithm.min_group) == (4, 2)
    assert recipe.algorithm.credit == "broadcast"
    assert recipe.sampling.val.temperature == 0.0  # greedy
    assert recipe.policies["policy"].tool_parser == "compact"


def test_a_tiny_policy_need_not_read_every_message() -> None:
    assert PolicyRecipe(tiny="m:f").accepts_unread
    assert not PolicyRecipe(tiny="m:f", unread_messages="refuse").accepts_unread
    assert not PolicyRecipe(model="m").accepts_unread
    assert PolicyRecipe(model="m", unread_messages="accept").accepts_unread


def test_what_a_recipe_names_is_relative_to_its_folder(tmp_path: Path) -> None:
    loaded = load(tmp_path)
    assert loaded.folder == tmp_path.resolve()
    assert loaded.run_folder == Path("runs/arithmetic")
    assert load(tmp_path, RECIPE, "folder=elsewhere").run_folder == Path("elsewhere")


def test_the_agents_python_is_found_from_the_recipes_folder_and_has_lightningrl(
    tmp_path: Path,
) -> None:
    def python(name: str, starts: str) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'#!/bin/sh\nexec {starts} "$@"\n', encoding="utf-8")
        path.chmod(0o755)
        return str(path)

    assert load(tmp_path).agents_python() is None
    loaded = load(tmp_path, RECIPE, "runner.python=.venv/bin/python")
    with pytest.raises(ConfigError, match=r"runner\.python: there is no program '.*/\.venv/bin/py"):
        loaded.agents_python()
    assert python(".venv/bin/python", sys.executable) == loaded.agents_python()
    # -S: without the packages that are installed.
    bare = python("bare", f"{sys.executable} -I -S")
    with pytest.raises(ConfigError, match=f"runner\\.python: '{bare}' has no lightningrl"):
        load(tmp_path, RECIPE, "runner.python=./bare").agents_python()


# -- overrides ----------------------------------------------------------------------------------


def test_overrides_are_yaml_values_and_the_last_one_wins(tmp_path: Path) -> None:
    recipe = load(
        tmp_path, RECIPE, "seed=1", "seed=2", "validation.sampled=false", "name=other"
    ).recipe
    assert (recipe.seed, recipe.validation.sampled, recipe.name) == (2, False, "other")


def test_an_override_reaches_into_a_named_policy(tmp_path: Path) -> None:
    recipe = load(tmp_path, RECIPE, "policies.policy.replaces=[gpt-x]").recipe
    assert recipe.policies["policy"].replaces == ("gpt-x",)


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("seed", "'seed' is not of the form key=value"),
        ("name.first=x", "'name' is a value in the recipe, not a section"),
        ("algorithm.group_sice=8", "Did you mean 'group_size'"),
        ("algorithm.group_size=many", r"Expected `int`, got `str`.*group_size"),
    ],
)
def test_an_override_that_fits_nothing_is_refused(
    tmp_path: Path, override: str, complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        load(tmp_path, RECIPE, override)


@pytest.mark.parametrize("written", ["1e-3", "1.0e-3", "0.001", "1E-3"])
def test_a_learning_rate_may_be_written_in_any_way(tmp_path: Path, written: str) -> None:
    recipe = load(tmp_path, RECIPE, f"optimiser.learning_rate={written}").recipe
    assert recipe.optimiser is not None
    assert recipe.optimiser.learning_rate == 0.001


def test_an_override_that_is_no_yaml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not valid YAML"):
        load(tmp_path, RECIPE, "policies.policy.replaces=[gpt-x")


# -- what is refused ----------------------------------------------------------------------------

ALGORITHM = {"iterations": 1, "tasks_per_iteration": 1, "group_size": 2}


@pytest.mark.parametrize(
    ("tree", "complaint"),
    [
        ({"trainer": {"ranks": 2}}, "several 'trainer.ranks'.*need 'cluster: ray'"),
        ({"cluster_address": "auto"}, "need 'cluster: ray'"),
        (
            {"cluster": "ray", "trainer": {"ranks": 3, "nodes": 2}},
            "3 can't be spread evenly over 2 nodes",
        ),
        ({"engine": {"replicas": 0}}, "engine.replicas: must be at least 1"),
        ({"nmae": "x"}, r"unknown recipe key 'nmae'.*Did you mean 'name'"),
        (
            {"gateway": {"hosted_tools": "droop"}},
            r"gateway.hosted_tools: 'droop' is none of its values. Did you mean 'drop'",
        ),
        (
            {"policies": {"policy": {"constrained": "fre"}}},
            r"policies.policy.constrained: 'fre' is none .*'free'. Valid: free, untrained",
        ),
        (
            {"policies": {"policy": {"unread_messages": "x"}}},
            r"policies.policy.unread_messages: 'x' is none of its values. Valid: accept, refuse",
        ),
        (
            {"data": {"train": {"source": "x", "limits": 3}}},
            r"unknown recipe key 'limits' in 'data.train'.*Did you mean 'limit'",
        ),
        (
            {"policies": {"policy": {"tiny": "m:f", "tool_parsr": "x"}}},
            r"unknown recipe key 'tool_parsr' in 'policies.policy'.*Did you mean 'tool_parser'",
        ),
        ({"sampling": {"train": {"temprature": 1}}}, r"in 'sampling.train'.*'temperature'"),
        ({"command": ["run"]}, "exactly one of 'agent' and 'command'"),
        ({"agent": None}, "exactly one of 'agent' and 'command'"),
        ({"policies": {"p": {}}}, r"policies\.p: give exactly one of 'model', 'tiny' and 'url'"),
        (
            {"policies": {"p": {"tiny": "m:f", "model": "x"}}},
            r"policies\.p: give exactly one of 'model', 'tiny' and 'url', not model and tiny; set .* null",
        ),
        ({"seed": "zero"}, "Expected `int`"),
        (
            {"gateway": {"hold_seconds": 29.0, "drain_seconds": 20.0}},
            r"gateway.hold_seconds: .* at least 1.5 times gateway.drain_seconds, 20.0",
        ),
        (
            {"algorithm": {**ALGORITHM, "forks": {"at": "spred"}}},
            r"algorithm.forks.at: there is no rule 'spred'. Did you mean 'spread'",
        ),
        (
            {"algorithm": {**ALGORITHM, "forks": {"members": 0}}},
            r"algorithm.forks.members: must be at least 1, not 0",
        ),
        (
            {"algorithm": {**ALGORITHM, "forks": {"members": 1}}},
            r"algorithm.forks.members: 1 is less than algorithm.min_group, 2",
        ),
        (
            {"algorithm": {**ALGORITHM, "forks": {"member": 1}}},
            r"unknown recipe key 'member' in 'algorithm.forks'.*Did you mean 'members'",
        ),
        ({"gateway": {"pin": ["x("]}}, r"gateway.pin: 'x\(' is no regular expression"),
        ({"gateway": {"pin": ["x*"]}}, r"gateway.pin: 'x\*' matches the empty text"),
        (
            {
                "policies": {
                    "p": {"url": "http://x", "trainable": False, "unread_messages": "accept"}
                }
            },
            r"policies\.p\.unread_messages: the chat template of a policy at a 'url' can't be seen",
        ),
        (
            {
                "policies": {"p": {"tiny": "m:f", "constrained": "free"}},
                "algorithm": {"iterations": 1, "tasks_per_iteration": 1, "group_size": 2},
            },
            r"policies\.p\.constrained: .* set algorithm\.failure_reward",
        ),
        ({"validation": {"every": 0}}, "validation.every: must be at least 1"),
        (
            {"policies": {"p": {"url": "http://x/v1"}}},
            r"policies\.p: a policy at a 'url' can't be trained",
        ),
        (
            {
                "policies": {
                    "p": {"tiny": "m:f", "optimiser": {"learning_rate": 1, "ppo_epochs": 0}}
                }
            },
            r"policies\.p\.optimiser\.ppo_epochs: must be at least 1",
        ),
        (
            {"algorithm": {"iterations": 0, "tasks_per_iteration": 1, "group_size": 1}},
            "algorithm.iterations: must be at least 1",
        ),
    ],
)
def test_a_wrong_recipe_is_refused_by_the_name_of_what_is_wrong(
    tree: dict[str, object], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        parse_recipe({"name": "n", "agent": "m:f"} | tree)


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("optimiser.kl_coeff=-1", "optimiser.kl_coeff: must be at least 0, not -1"),
        ("optimiser.learning_rate=-1", "optimiser.learning_rate: must be at least 0"),
        (
            "optimiser.learning_rate=.nan",
            "optimiser.learning_rate: must be a finite number, not nan",
        ),
        ("optimiser.clip_low=-0.1", "optimiser.clip_low: must be at least 0"),
        ("optimiser.grad_clip=0", "optimiser.grad_clip: must be more than 0, not 0"),
        (
            "policies.policy.optimiser={learning_rate: .inf}",
            r"policies\.policy\.optimiser\.learning_rate: must be a finite number",
        ),
        (
            "policies.policy.optimiser={learning_rate: 1, grad_clip: -1}",
            r"policies\.policy\.optimiser\.grad_clip: must be more than 0",
        ),
        (
            "policies.policy.max_model_len=32",
            r"policies\.policy\.max_model_len: must be at least 33",
        ),
        ("algorithm.importance_max=-1", "algorithm.importance_max: must be more than 0"),
        (
            "algorithm.importance_min=2",
            "importance_min: 2.0 is not less than .*importance_max, 2.0",
        ),
        ("algorithm.failure_reward=.nan", "algorithm.failure_reward: must be a finite number"),
        (
            "step_rewards=[{rule: length, weight: .inf}]",
            r"step_rewards\[0\]\.weight: must be a finite",
        ),
        ("runner.timeout_seconds=-1", "runner.timeout_seconds: must be more than 0"),
        ("runner.lease_seconds=0", "runner.lease_seconds: must be more than 0"),
        ("gateway.drain_seconds=-5", "gateway.drain_seconds: must be at least 0"),
        ("data.train.limit=-1", "data.train.limit: must be at least 1"),
        ("sampling.train.max_tokens=0", "sampling.train.max_tokens: must be at least 1"),
        ("trainer.probe_tolerance=-1", "trainer.probe_tolerance: must be at least 0"),
    ],
)
def test_a_number_that_makes_no_sense_is_refused(
    tmp_path: Path, override: str, complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        load(tmp_path, RECIPE, override)


def test_layers_are_named_from_the_last_on() -> None:
    assert Trainer().train_last is None
    assert Trainer(train_layers="last 15").train_last == 15
    for wrong in ("last", "last 0", "first 3", "15"):
        with pytest.raises(ConfigError, match="not of the form 'last N'"):
            Trainer(train_layers=wrong)


def test_an_override_of_a_verl_key_is_its_dotted_name_and_comes_last(tmp_path: Path) -> None:
    text = RECIPE + "verl: {actor.optim.lr: 1, actor: {optim: {lr: 2}}}\n"
    verl = load(tmp_path, text, "verl.actor.optim.lr=1e-3").recipe.verl
    assert list(verl.items()) == [("actor", {"optim": {"lr": 2}}), ("actor.optim.lr", 1e-3)]


def test_keys_of_verl_are_left_to_the_trainer() -> None:
    recipe = parse_recipe({"name": "n", "agent": "m:f", "verl": {"actor": {"any": {"key": 1}}}})
    assert recipe.verl == {"actor": {"any": {"key": 1}}}


def test_a_recipe_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"can't read the recipe .*missing\.yaml"):
        load_recipe(tmp_path / "missing.yaml")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("name: [", "not valid YAML"),
        ("- a\n- b\n", "a recipe is a mapping of keys, this is list"),
        ("", "a recipe is a mapping of keys, this is NoneType"),
    ],
)
def test_what_is_no_mapping_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        load(tmp_path, text)


# -- the resolved recipe ------------------------------------------------------------------------


def test_a_resolved_recipe_reads_back_as_itself(tmp_path: Path) -> None:
    recipe = load(tmp_path).recipe
    assert load(tmp_path, dump_recipe(recipe)).recipe == recipe


def test_changed_keys_are_named_by_their_whole_path(tmp_path: Path) -> None:
    old = load(tmp_path).recipe
    new = load(tmp_path, RECIPE, "algorithm.group_size=8", "policies.judge.model=m").recipe
    assert changed_keys(old, old) == []
    changed = changed_keys(old, new)
    assert "algorithm.group_size" in changed
    assert "policies.judge.model" in changed
    assert "algorithm.iterations" not in changed


# -- presets ------------------------------------------------------------------------------------


def test_a_preset_fills_the_keys_that_the_recipe_leaves_out(tmp_path: Path) -> None:
    gspo = load(tmp_path, RECIPE, "algorithm.preset=gspo", "optimiser.clip_high=0.1").recipe
    assert gspo.algorithm is not None
    assert gspo.optimiser is not None
    assert (gspo.algorithm.loss, gspo.algorithm.rows) == ("gspo", "calls")
    assert (gspo.optimiser.clip_low, gspo.optimiser.clip_high) == (3e-4, 0.1)
    assert gspo.optimiser.learning_rate == 1e-3


def test_a_preset_fills_the_optimisers_that_policies_have_of_their_own(tmp_path: Path) -> None:
    gspo = load(
        tmp_path,
        RECIPE,
        "algorithm.preset=gspo",
        "policies.policy.optimiser={learning_rate: 1e-4, clip_high: 0.1}",
        "policies.judge={url: 'http://x/v1', trainable: false}",
    ).recipe
    own = gspo.policies["policy"].optimiser
    assert own is not None
    assert (own.learning_rate, own.clip_low, own.clip_high) == (1e-4, 3e-4, 0.1)
    assert gspo.policies["judge"].optimiser is None


def test_a_preset_makes_no_optimiser_where_each_policy_has_its_own() -> None:
    own = {"optimiser": {"learning_rate": 1e-4}}
    algorithm = {"preset": "gspo", "iterations": 1, "tasks_per_iteration": 1, "group_size": 2}
    recipe = parse_recipe(
        {
            "name": "n",
            "agent": "m:f",
            "policies": {"p": {"tiny": "m:f", **own}},
            "algorithm": algorithm,
        }
    )
    assert recipe.optimiser is None
    assert parse_recipe(yaml.safe_load(dump_recipe(recipe))) == recipe


def test_another_credit_assigner_gets_nothing_that_the_preset_has_for_its_own(
    tmp_path: Path,
) -> None:
    recipe = load(tmp_path, RECIPE, "algorithm.preset=ppo", "algorithm.credit=gigpo").recipe
    assert recipe.algorithm is not None
    assert recipe.algorithm.credit_args == {}
    assert recipe.algorithm.min_group == 2  # ppo's is 1
    assert recipe.critic is None
    assert recipe.optimiser is not None
    assert recipe.optimiser.clip_high == 0.2


@pytest.mark.parametrize(
    ("written", "learning_rate"), [("critic={learning_rate: 1e-4}", 1e-4), ("critic=null", None)]
)
def test_a_preset_leaves_a_critic_or_the_lack_of_one_as_it_is_written(
    tmp_path: Path, written: str, learning_rate: float | None
) -> None:
    critic = load(tmp_path, RECIPE, "algorithm.preset=ppo", written).recipe.critic
    assert (critic and critic.learning_rate) == learning_rate


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_recipe_that_stays_the_same_when_written_out(
    tmp_path: Path, name: str
) -> None:
    recipe = load(tmp_path, RECIPE, f"algorithm.preset={name}").recipe
    again = parse_recipe(yaml.safe_load(dump_recipe(recipe)))
    assert changed_keys(recipe, again) == []


def test_an_unknown_preset_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no 'grop'.*'grpo'"):
        load(tmp_path, RECIPE, "algorithm.preset=grop")


# -- which engines can be placed where ----------------------------------------------------------

TINY = {"policies": {"p": {"tiny": "m:f"}}}
ON_RAY = {**TINY, "cluster": "ray"}
ON_GPUS = {**ON_RAY, "trainer": {"ranks": 4, "device": "cuda"}}
COLOCATED = {"backend": "vllm", "placement": "colocated", "replicas": 2, "tensor_parallel": 2}


@pytest.mark.parametrize(
    "tree",
    [
        {**ON_RAY, "trainer": {"ranks": 2}, "engine": {"placement": "colocated", "replicas": 2}},
        {**ON_RAY, "engine": {"placement": "separate", "replicas": 3}},
        {**ON_GPUS, "engine": {**COLOCATED, "vllm": {"enforce_eager": True}}},
        {**ON_GPUS, "engine": {**COLOCATED, "placement": "separate", "replicas": 1}},
        {**ON_GPUS, "engine": COLOCATED, "policies": {"p": {"tiny": "m:f", "tool_parser": "xlam"}}},
    ],
)
def test_engines_may_be_managed_by_verl(tree: dict[str, Any]) -> None:
    assert parse_recipe({"name": "x", "agent": "a:b", **tree}).engine.managed


@pytest.mark.parametrize(
    ("tree", "complaint"),
    [
        (
            {**TINY, "engine": {"backend": "vllm"}},
            "engine.backend: vLLM is started by verl in a Ray",
        ),
        ({**TINY, "engine": {"tensor_parallel": 2}}, "engine.tensor_parallel: only vLLM reads it"),
        ({**TINY, "engine": {"gpu_memory_share": 0.4}}, "engine.gpu_memory_share: only vLLM"),
        ({**TINY, "engine": {"vllm": {"enforce_eager": True}}}, "engine.vllm: only vLLM reads it"),
        (
            {**ON_GPUS, "engine": {**COLOCATED, "vllm": {"max-model-len": 8}}},
            r"engine\.vllm: 'max-model-len' follows 'policies\.NAME\.max_model_len'",
        ),
        ({**TINY, "engine": {"placement": "colocated"}}, "set 'cluster: ray'"),
        (
            {**ON_GPUS, "engine": {"placement": "separate"}},
            "engine.backend: in a cluster the torch engine runs on CPUs",
        ),
        (
            {**ON_RAY, "engine": {"backend": "vllm", "placement": "separate"}},
            "engine.backend: verl's vLLM runs on GPUs",
        ),
        (
            {**ON_RAY, "trainer": {"ranks": 2}, "engine": {"placement": "colocated"}},
            "engine.replicas: colocated engines share the devices of all ranks.*'trainer.ranks: 2'",
        ),
        (
            {
                **ON_RAY,
                "trainer": {"ranks": 4, "nodes": 2, "device": "cuda"},
                "engine": {**COLOCATED, "replicas": 1, "tensor_parallel": 4},
            },
            "engine.tensor_parallel: the 2 rank",
        ),
        (
            {**ON_GPUS, "engine": {**COLOCATED, "threads": 2}},
            "engine.threads: only the torch engine",
        ),
        ({**ON_GPUS, "engine": {**COLOCATED, "gpu_memory_share": 1.0}}, "must be between 0 and 1"),
        (
            {
                **ON_GPUS,
                "engine": COLOCATED,
                "policies": {"p": {"tiny": "m:f", "tool_parser": "compact"}},
            },
            r"policies\.p\.tool_parser: vLLM has no parser 'compact'",
        ),
        (
            {
                **ON_GPUS,
                "engine": COLOCATED,
                "policies": {"p": {"tiny": "m:f"}, "q": {"tiny": "m:f", "trainable": False}},
            },
            "verl manages the engines of one policy",
        ),
        ({**ON_GPUS, "engine": {**COLOCATED, "tensor_parallel": 0}}, "must be at least 1"),
    ],
)
def test_engines_that_cannot_be_placed_are_refused(tree: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        parse_recipe({"name": "x", "agent": "a:b", **tree})


def test_a_chat_template_is_for_a_model() -> None:
    policy = {"tiny": "m:spec", "chat_template": "hermes"}
    with pytest.raises(ConfigError, match=r"policies\.policy\.chat_template: is for a policy"):
        parse_recipe({"name": "r", "agent": "m:f", "policies": {"policy": policy}})


@pytest.mark.parametrize(
    ("warm_start", "complaint"),
    [
        ({"demonstration": "d.jsonl"}, "Did you mean 'demonstrations'"),
        ({"demonstrations": "d.jsonl"}, "learning_rate"),
        ({"min_reward": 1.0}, "warm_start.min_reward: only rollouts have rewards"),
        ({"demonstrations": "run:old"}, "warm_start.min_reward: say which rollouts of 'run:old'"),
        (
            {"demonstrations": "run:old", "min_reward": 1.0, "args": {"a": 1}},
            "warm_start.args: a run takes none",
        ),
        ({"epochs": 0}, r"policies\.policy\.warm_start\.epochs: must be at least 1"),
        ({"learning_rate": 0.0}, r"warm_start\.learning_rate: must be more than 0"),
        ({"held_out": 1.5}, "held_out"),
    ],
)
def test_a_warm_start_that_can_not_be_made_is_refused(
    warm_start: dict[str, Any], complaint: str
) -> None:
    given = {"demonstrations": "d.jsonl", "learning_rate": 1e-4, **warm_start}
    if complaint == "learning_rate":
        del given["learning_rate"]
    policy = {"model": "m", "warm_start": given}
    with pytest.raises(ConfigError, match=complaint):
        parse_recipe({"name": "demo", "agent": "a:b", "policies": {"policy": policy}})


def test_a_policy_that_is_not_trained_has_no_warm_start() -> None:
    warm_start = {"demonstrations": "d.jsonl", "learning_rate": 1e-4}
    policy = {"model": "m", "trainable": False, "warm_start": warm_start}
    with pytest.raises(ConfigError, match="a policy that is not trained stays as it is"):
        parse_recipe({"name": "demo", "agent": "a:b", "policies": {"policy": policy}})


def test_a_recipe_that_only_fine_tunes_needs_no_agent() -> None:
    warm_start = {"demonstrations": "d.jsonl", "learning_rate": 1e-4}
    tree: dict[str, Any] = {
        "name": "demo", "policies": {"policy": {"model": "m", "warm_start": warm_start}},
    }  # fmt: skip
    assert parse_recipe(tree).agent is None
    tree["algorithm"] = {"iterations": 1, "tasks_per_iteration": 1, "group_size": 2}
    with pytest.raises(ConfigError, match="exactly one of 'agent' and 'command'"):
        parse_recipe(tree)
