"""Recipes are checked before anything starts: every wrong key or value is named."""

from pathlib import Path

import pytest

from lightningrl.errors import ConfigError
from lightningrl.recipe import LoadedRecipe, changed_keys, dump_recipe, load_recipe, parse_recipe

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


def test_what_a_recipe_names_is_relative_to_its_folder(tmp_path: Path) -> None:
    loaded = load(tmp_path)
    assert loaded.folder == tmp_path.resolve()
    assert loaded.run_folder == Path("runs/arithmetic")
    assert load(tmp_path, RECIPE, "folder=elsewhere").run_folder == Path("elsewhere")


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


@pytest.mark.parametrize(
    ("tree", "complaint"),
    [
        ({"nmae": "x"}, r"unknown recipe key 'nmae'.*Did you mean 'name'"),
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
        ({"policies": {"p": {}}}, r"policies\.p: give exactly one of 'model' and 'tiny'"),
        (
            {"policies": {"p": {"tiny": "m:f", "model": "x"}}},
            r"policies\.p: give exactly one of 'model' and 'tiny'",
        ),
        ({"seed": "zero"}, "Expected `int`"),
        ({"validation": {"every": 0}}, "validation.every: must be at least 1"),
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
