"""Write docs/reference/recipe.md from the structs that check recipes.

Invariant: every key of a recipe stands on the page with a meaning, either the docstring below its field
or an entry of `MEANINGS`; a key with neither, or an entry that nothing needs, is an error.

Run it with `python scripts/recipe_reference.py`.
"""

from __future__ import annotations

import ast
import enum
import inspect
import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec

from lightningrl import recipe, schema

PAGE = Path(__file__).resolve().parent.parent / "docs" / "reference" / "recipe.md"

HEADER = """\
<!-- Written by scripts/recipe_reference.py; edit the docstrings of lightningrl/recipe/ instead. -->
# Recipe reference

```bash
lightningrl train recipe.yaml algorithm.group_size=8     # changes one key
```

A recipe is one YAML mapping. [Train your own agent](../how-to/train-your-own-agent.md) explains a small one.

- `name` and one of `agent` and `command` are required. `lightningrl train` also needs `data`, `algorithm`, `optimiser` and at least one trainable policy.
- An unknown key, or a value of another type, is an error. It names the key and the nearest valid one.
- Paths and modules are relative to the recipe's folder. Only `folder` itself is relative to the working directory.
- In `sampling.train` leave `top_p`, `top_k` and the penalties off. The update knows the temperature alone: with these, its log-probs are not those that the
  tokens were sampled at.
"""

MEANINGS = {
    "data": "The tasks: one source per split.",
    "data.val": "Scored every `validation.every` iterations. Null: never.",
    "policies": "Alias → policy. An alias is also a model name that the agent may use.",
    "guards": "When a run stops by itself, because training has collapsed.",
    "guards.patience": "Iterations in a row.",
    "algorithm": "Needed by `lightningrl train`.",
    "algorithm.iterations": "Iterations of the whole run.",
    "algorithm.credit_args": "Keyword arguments of the credit assigner.",
    "optimiser": "Needed by `lightningrl train`.",
    "optimiser.learning_rate": "AdamW's rate in the first iteration.",
    "optimiser.schedule": "How the rate moves from the first iteration to the last.",
    "optimiser.betas": "Of AdamW.",
    "optimiser.weight_decay": "Of AdamW.",
    "optimiser.clip_low": "See `clip_high`.",
    "sampling": "How the policy samples.",
    "sampling.train": "In training rollouts.",
    "sampling.val": "In validation and test rollouts.",
    "sampling.MODE.top_p": "1 is off.",
    "sampling.MODE.presence_penalty": "0 is off.",
    "sampling.MODE.frequency_penalty": "0 is off.",
    "validation": "When validation is scored.",
    "validation.every": "Iterations between two validations.",
    "trainer": "Where and how the trainer runs.",
    "trainer.device": "Of the trainer and the engine.",
    "engine": "The embedded inference engine.",
    "runner": "The processes that run agents.",
    "runner.processes": "How many.",
    "runner.lease_seconds": "A worker that is silent for longer loses its attempts.",
    "runner.retry": "How often a rollout is tried.",
    "gateway": "The server on this machine.",
    "seed": "Of the order of tasks, the tiny policy and the update.",
}
"""Key -> meaning, where the field has no docstring."""

_BELOW: dict[str, list[tuple[str, type[msgspec.Struct]]]] = {
    "data": [("data.SPLIT", recipe.DataSource)],
    "policies": [
        ("policies.NAME.warm_start", recipe.WarmStart),
        ("policies.NAME.side_calls", recipe.SideCall),
    ],
    "algorithm": [("algorithm.forks", recipe.Forks)],
    "sampling": [("sampling.MODE", schema.Sampling)],
    "runner": [("runner.retry", recipe.Retry)],
}
"""Section -> the sections inside it."""

_TITLES = {
    "NAME": "`NAME` is the policy's alias.",
    "MODE": "`MODE` is `train` or `val`.",
    "SPLIT": "`SPLIT` is `train`, `val` or `test`.",
}


def main() -> None:
    """Write the page."""
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(render(), encoding="utf-8")
    sys.stdout.write(f"wrote {PAGE.name}\n")


def render() -> str:
    """The whole page."""
    used: set[str] = set()
    sections = [_section(prefix, kind, used) for prefix, kind in _sections()]
    stale = MEANINGS.keys() - used
    if stale:
        raise ValueError(
            f"no key without a docstring has these names, delete them from MEANINGS: {sorted(stale)}"
        )
    return "\n".join([HEADER, *sections])


def _sections() -> Iterator[tuple[str, type[msgspec.Struct]]]:
    """Each section's dotted key, from the top down; what has one shape stands once."""
    yield "", recipe.Recipe
    for field in msgspec.structs.fields(recipe.Recipe):
        struct = _struct_of(field.type)
        if struct is None:
            continue
        yield (f"{field.name}.NAME" if get_origin(field.type) is dict else field.name), struct
        yield from _BELOW.get(field.name, ())


def _section(prefix: str, kind: type[msgspec.Struct], used: set[str]) -> str:
    documented = _docstrings(kind)
    rows: list[str] = []
    for field in msgspec.structs.fields(kind):
        key = f"{prefix}.{field.name}" if prefix else field.name
        meaning = documented.get(field.name)
        if meaning is None:
            if key not in MEANINGS:
                raise ValueError(f"{key!r} has no docstring; write one, or an entry of MEANINGS")
            meaning = MEANINGS[key]
            used.add(key)
        cells = (f"`{field.name}`", _type(field.type), _default(field), meaning)
        rows.append("| " + " | ".join(" ".join(cell.split()) for cell in cells) + " |")
    title = f"## `{prefix}`" if prefix else "## Top level"
    last = prefix.rpartition(".")[2]
    about = f"{title}\n\n" + (f"{_TITLES[last]} " if last in _TITLES else "")
    about += " ".join((kind.__doc__ or "").split())
    return "\n".join(
        [about, "", "| key | type | default | meaning |", "|---|---|---|---|", *rows, ""]
    )


def _docstrings(kind: type[msgspec.Struct]) -> dict[str, str]:
    """Field -> the text that stands below it in the source, "None" written as YAML has it; inherited ones too."""
    bases = (one for one in kind.__bases__ if one is not msgspec.Struct)
    found = {name: text for one in bases for name, text in _docstrings(one).items()}
    (tree,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(tree, ast.ClassDef)
    name = None
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            name = node.target.id
        elif isinstance(node, ast.Expr) and name is not None:
            found[name] = str(ast.literal_eval(node.value)).replace("`None`", "Null")
            name = None
        else:
            name = None
    return found


def _struct_of(kind: Any) -> type[msgspec.Struct] | None:
    """The struct in `Struct`, `Struct | None` or `dict[str, Struct]`."""
    parts = get_args(kind) or (kind,)
    return next(
        (one for one in parts if isinstance(one, type) and issubclass(one, msgspec.Struct)), None
    )


def _type(kind: Any) -> str:
    parts = get_args(kind)
    if get_origin(kind) in (types.UnionType, Union):  # with a Literal it is the latter
        return " or ".join("null" if one is type(None) else _type(one) for one in parts)
    if get_origin(kind) is Annotated:
        return f"{_type(parts[0])} from {parts[1].ge:g} to {parts[1].le:g}"
    if get_origin(kind) is Literal:
        return ", ".join(f"`{one}`" for one in parts)
    if get_origin(kind) is tuple:
        listed = "list of texts" if _struct_of(kind) is None else "list of sections"
        return listed if parts[-1] is Ellipsis else "two numbers"
    if get_origin(kind) is dict:
        return "mapping" if _struct_of(kind) is None else "alias → section"
    if _struct_of(kind) is not None:
        return "section"
    if issubclass(kind, enum.Enum):
        return ", ".join(f"`{one.value}`" for one in kind)
    return {str: "text", int: "whole number", float: "number", bool: "`true`, `false`"}[kind]


def _default(field: Any) -> str:
    if field.default is msgspec.NODEFAULT and field.default_factory is msgspec.NODEFAULT:
        return "required"
    default = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    if isinstance(default, msgspec.Struct):
        return "its defaults"
    return f"`{json.dumps(msgspec.to_builtins(default))}`"


if __name__ == "__main__":
    main()
