"""Recipes: the YAML file that describes one training run, checked before anything starts.

Invariant: every key of a recipe is known and of the right type, or loading raises a `ConfigError`
that names the key and the nearest valid one. The key `verl:` is the one exception: it is checked by
the trainer against verl's own schema.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import msgspec
import yaml

from lightningrl.errors import ConfigError
from lightningrl.nearest import suggest
from lightningrl.schema import RetryPolicy, Sampling


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A mapping of the recipe."""


class DataSource(_Section, frozen=True):
    """Where the tasks of one split come from."""

    source: str
    """`module:function` that returns the rows, or a path to a `.jsonl` file, relative to the recipe."""
    args: dict[str, Any] = {}
    """Keyword arguments for the function."""
    limit: int | None = None
    """Use the first `limit` rows. `None`: all."""


class Data(_Section, frozen=True):
    """The tasks. Each row is a JSON object; `id` is its task id, else its index is."""

    train: DataSource
    val: DataSource | None = None
    test: DataSource | None = None
    """Scored once, when training has ended."""


class PolicyRecipe(_Section, frozen=True):
    """A model under an alias."""

    model: str | None = None
    """A Hugging Face model folder, relative to the recipe."""
    tiny: str | None = None
    """`module:function` that describes a tiny policy to build; instead of `model`."""
    trainable: bool = True
    replaces: tuple[str, ...] = ()
    """Model names of the agent that this policy answers for."""
    agents: tuple[str, ...] = ()
    """Agent names that this policy answers for."""
    tool_parser: str = "none"
    """How tool calls are read from the model's text: `none`, `hermes`, `compact`."""
    max_model_len: int = 2048
    """Longest prompt plus answer, tokens."""


class Algorithm(_Section, frozen=True):
    """What an iteration collects and how credit is assigned."""

    iterations: int
    tasks_per_iteration: int
    group_size: int
    """Rollouts per task."""
    min_group: int = 2
    """Groups with fewer succeeded rollouts are skipped."""
    credit: str = "broadcast"
    """A shipped method's name, an entry point of `lightningrl.credit`, or `module:function`."""
    credit_args: dict[str, Any] = {}


class Optimiser(_Section, frozen=True):
    """How verl changes the weights."""

    learning_rate: float
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    min_lr_ratio: float = 0.1
    """The schedule ends at `learning_rate` times this."""
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    grad_clip: float = 1.0
    """Largest gradient norm."""
    clip_low: float = 0.2
    clip_high: float = 0.28
    """PPO's clip range is [1 - clip_low, 1 + clip_high] (DAPO's clip-higher, arXiv 2503.14476)."""
    entropy_coeff: float = 0.0
    """Bonus on the mean entropy of trained tokens; 0 does not compute it."""
    kl_coeff: float = 0.0
    """Penalty on the divergence from the initial weights; 0 keeps no copy of them."""
    warmup: int = 0
    """First updates, over which the learning rate rises."""
    ppo_epochs: int = 1
    """How often an update goes over its rows."""
    mini_batches: int = 1
    """Optimiser steps per epoch, at most."""


class SamplingRecipe(_Section, frozen=True):
    """How the policy samples, by mode. The agent's own parameters don't count."""

    train: Sampling = Sampling()
    val: Sampling = Sampling(temperature=0.0)


class Validation(_Section, frozen=True):
    """When the validation split is scored. Iterations 0 and the last are always scored."""

    every: int = 10
    sampled: bool = True
    """Score it a second time with the training sampling, as `val/reward_sampled`."""


class Trainer(_Section, frozen=True):
    """Where and how the trainer runs."""

    device: Literal["cpu", "cuda"] = "cpu"
    dtype: Literal["fp32", "bf16"] = "fp32"
    threads: int = 1
    """Torch threads of the update and of a tiny policy's warm start, on a CPU."""
    max_tokens_per_micro_batch: int = 2048
    """Tokens of one forward and backward pass, padding included."""
    keep_checkpoints: int = 2
    probe_tolerance: float | None = None
    """Largest allowed difference between the engine's and the trainer's log-probs after a sync, in
    nats. `None`: 1e-3 for fp32, 0.1 for bf16."""


class Engine(_Section, frozen=True):
    """The embedded inference engine."""

    slots: int = 64
    """Requests that decode together."""
    threads: int | None = 1


class Runner(_Section, frozen=True):
    """The processes that run agents."""

    processes: int = 1
    concurrency: int = 32
    """Attempts at a time per process."""
    timeout_seconds: float = 600.0
    """Longest time for one attempt."""
    lease_seconds: float = 30.0
    retry: RetryPolicy = RetryPolicy()
    python: str | None = None
    """Interpreter of the agent's own environment. `None`: this one."""


class GatewayRecipe(_Section, frozen=True):
    """The server on this machine."""

    port: int = 0
    """0 picks a free one."""
    hold_seconds: float = 60.0
    """Longest weight sync."""
    drain_seconds: float = 20.0
    """After this, running calls are aborted and sent again under the new version."""


class Recipe(_Section, frozen=True):
    """One training run."""

    name: str
    """The run's name; its folder is `runs/NAME` unless `folder` says otherwise."""
    folder: str | None = None
    """The run's folder, relative to the working directory."""
    seed: int = 0
    agent: str | None = None
    """`module:attribute`: a callable, an agent object, or a factory of one."""
    command: tuple[str, ...] | None = None
    """Instead of `agent`: a program and its arguments, in any language."""
    input: str | None = None
    """`module:function`: task -> the agent's input. `None`: the task itself."""
    reward: str | None = None
    """`module:function` `(task, output, trace) -> float`. `None`: the agent returns its reward."""
    data: Data | None = None
    policies: dict[str, PolicyRecipe] = {}
    algorithm: Algorithm | None = None
    optimiser: Optimiser | None = None
    sampling: SamplingRecipe = SamplingRecipe()
    validation: Validation = Validation()
    trainer: Trainer = Trainer()
    engine: Engine = Engine()
    runner: Runner = Runner()
    gateway: GatewayRecipe = GatewayRecipe()
    verl: dict[str, Any] = {}
    """verl's own configuration by verl's names, checked by the trainer against verl's schema."""

    def __post_init__(self) -> None:
        """Check what types can't say."""
        if (self.agent is None) == (self.command is None):
            raise ConfigError("recipe: give exactly one of 'agent' and 'command'")
        for alias, policy in self.policies.items():
            if (policy.model is None) == (policy.tiny is None):
                raise ConfigError(f"policies.{alias}: give exactly one of 'model' and 'tiny'")
        for key, least in _LEAST.items():
            value = _value(self, key)
            if value is not None and value < least:
                raise ConfigError(f"{key}: must be at least {least}, not {value}")
        if self.gateway.hold_seconds <= self.gateway.drain_seconds:
            raise ConfigError(
                "gateway.hold_seconds: a hold must outlast its drain; make it longer than"
                f" gateway.drain_seconds, {self.gateway.drain_seconds}"
            )
        algorithm = self.algorithm
        if algorithm is not None and algorithm.min_group > algorithm.group_size:
            raise ConfigError(
                f"algorithm.min_group: {algorithm.min_group} is more than the"
                f" {algorithm.group_size} rollouts of a group, so every group would be skipped"
            )


_LEAST = {
    "algorithm.iterations": 1,
    "algorithm.tasks_per_iteration": 1,
    "algorithm.group_size": 1,
    "algorithm.min_group": 1,
    "optimiser.warmup": 0,
    "optimiser.ppo_epochs": 1,
    "optimiser.mini_batches": 1,
    "validation.every": 1,
    "trainer.threads": 1,
    "trainer.keep_checkpoints": 1,
    "trainer.max_tokens_per_micro_batch": 1,
    "engine.slots": 1,
    "engine.threads": 1,
    "runner.processes": 1,
    "runner.concurrency": 1,
    "gateway.port": 0,
}
"""Smallest sensible values."""


def _value(recipe: Recipe, key: str) -> Any:
    """The value at a dotted key; `None` where its section is missing."""
    found: Any = recipe
    for part in key.split("."):
        found = getattr(found, part) if found is not None else None
    return found


class LoadedRecipe(msgspec.Struct, frozen=True):
    """A checked recipe and where it came from."""

    recipe: Recipe
    path: Path
    """The file; what it names is relative to its folder."""

    @property
    def folder(self) -> Path:
        """The recipe's folder."""
        return self.path.parent

    @property
    def run_folder(self) -> Path:
        """Where the run keeps everything."""
        return Path(self.recipe.folder or f"runs/{self.recipe.name}")


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Read, override and check a recipe.

    Args:
        path: the YAML file.
        overrides: `a.b.c=value` texts, the value in YAML; applied in order.

    Raises:
        ConfigError: the file is missing or no YAML mapping, a key is unknown or of the wrong type.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"can't read the recipe {str(path)!r}: {error.strerror}") from error
    tree = _read_yaml(text, where=str(path))
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: a recipe is a mapping of keys, this is {type(tree).__name__}")
    for override in overrides:
        _override(tree, override)
    return LoadedRecipe(recipe=parse_recipe(tree, where=str(path)), path=path.resolve())


def parse_recipe(tree: Mapping[str, Any], *, where: str = "recipe") -> Recipe:
    """Check a recipe that is already a tree of plain values.

    Raises:
        ConfigError: a key is unknown or a value of the wrong type.
    """
    _check_keys(tree, Recipe, "")
    try:
        return msgspec.convert(tree, Recipe)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {error}") from error


def dump_recipe(recipe: Recipe) -> str:
    """The recipe with every default written out, as YAML."""
    return yaml.safe_dump(msgspec.to_builtins(recipe), sort_keys=False, allow_unicode=True)


def changed_keys(old: Recipe, new: Recipe) -> list[str]:
    """Dotted keys whose values differ, sorted."""
    before, after = (_flatten(msgspec.to_builtins(recipe)) for recipe in (old, new))
    return sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= _flatten(value, f"{prefix}{key}.")  # pyright: ignore[reportUnknownArgumentType] - plain JSON
        else:
            flat[f"{prefix}{key}"] = value
    return flat


class _Loader(yaml.SafeLoader):
    """YAML whose numbers may be written `1e-3`, a text in YAML 1.1, which PyYAML reads."""


_Loader.add_implicit_resolver(  # pyright: ignore[reportUnknownMemberType] - PyYAML has no types
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def _read_yaml(text: str, *, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not valid YAML: {error}") from error


def _override(tree: dict[str, Any], text: str) -> None:
    key, separator, value = text.partition("=")
    if not separator:
        raise ConfigError(f"{text!r} is not of the form key=value")
    *parents, last = key.split(".")
    node: Any = tree
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise ConfigError(f"{text!r}: {parent!r} is a value in the recipe, not a section")
    node[last] = _read_yaml(value, where=repr(text))


def _check_keys(tree: Any, kind: Any, prefix: str) -> None:
    """Raise for the first key that `kind`, a struct, a dict of structs or a union, doesn't know."""
    struct = _struct_in(kind)
    if struct is None or not isinstance(tree, dict):
        return
    if get_origin(kind) is dict:
        for key, value in tree.items():
            _check_keys(value, struct, f"{prefix}{key}.")
        return
    fields = {field.encode_name: field.type for field in msgspec.structs.fields(struct)}
    for key, value in tree.items():
        if key not in fields:
            where = f" in {prefix[:-1]!r}" if prefix else ""
            raise ConfigError(f"unknown recipe key {key!r}{where}.{suggest(str(key), fields)}")
        _check_keys(value, fields[key], f"{prefix}{key}.")


def _struct_in(kind: Any) -> type[msgspec.Struct] | None:
    """The struct in `Struct`, `Struct | None` or `dict[str, Struct]`; `None` where there is none."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return kind
    for part in get_args(kind):
        found = _struct_in(part)
        if found is not None:
            return found
    return None
