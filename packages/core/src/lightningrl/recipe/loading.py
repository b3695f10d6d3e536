"""Reading a recipe: YAML, overrides, and the check that every key is known."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import msgspec
import yaml

from lightningrl.errors import ConfigError
from lightningrl.recipe.presets import with_preset
from lightningrl.recipe.whole import Recipe
from lightningrl.user_input.names import suggest


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

    def agents_python(self) -> str | None:
        """The interpreter that runs agents; a path is relative to the recipe. `None`: this process's own.

        Raises:
            ConfigError: it is not there, can't be run, or lacks `lightningrl`.
        """
        python = self.recipe.runner.python
        if python is None:
            return None
        # A name alone is found on PATH. A link stays a link: by it Python finds its virtual environment.
        place = (
            str(self.folder / Path(python).expanduser()) if set("/\\~") & set(python) else python
        )
        if shutil.which(place) is None:
            raise ConfigError(
                f"runner.python: there is no program {place!r}; name the Python of the agent's environment, such as"
                " .venv/bin/python: a path is relative to the recipe's folder"
            )
        looks = (
            "import importlib.util, sys; sys.exit(importlib.util.find_spec('lightningrl') is None)"
        )
        if subprocess.run([place, "-c", looks], check=False).returncode:
            raise ConfigError(
                f"runner.python: {place!r} has no lightningrl; install it there, and the adapter of the agent's framework"
            )
        return place


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
        return msgspec.convert(with_preset(tree), Recipe)
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
    # verl's keys are dotted names; the last one given wins, whether it stands nested in the file or not.
    *parents, last = key.split(".", 1) if key.startswith("verl.") else key.split(".")
    node: Any = tree
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise ConfigError(f"{text!r}: {parent!r} is a value in the recipe, not a section")
    node.pop(last, None)
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
        choices = _choices_in(fields[key])
        if choices and isinstance(value, str) and value not in choices:
            raise ConfigError(
                f"{prefix}{key}: {value!r} is none of its values.{suggest(value, choices)}"
            )
        _check_keys(value, fields[key], f"{prefix}{key}.")


def _choices_in(kind: Any) -> tuple[str, ...]:
    """The texts that a `Literal`, or a `Literal` and `None`, allows; empty for every other type."""
    if get_origin(kind) is Literal:
        return get_args(kind)
    parts = [part for part in get_args(kind) if part is not type(None)]
    return _choices_in(parts[0]) if len(parts) == 1 and get_origin(kind) in _UNIONS else ()


_UNIONS = (Union, UnionType)


def _struct_in(kind: Any) -> type[msgspec.Struct] | None:
    """The struct in `Struct`, `Struct | None` or `dict[str, Struct]`; `None` where there is none."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return kind
    for part in get_args(kind):
        found = _struct_in(part)
        if found is not None:
            return found
    return None
