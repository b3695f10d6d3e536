"""Write docs/reference/algorithms.md: presets, and what works together, by asking the trainer's check.

Invariant: the page says of a combination what `lightningrl train` would say of it.

Run it with `python scripts/algorithms_reference.py`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from lightningrl.credit import StatefulAssigner, find_assigner
from lightningrl.errors import ConfigError
from lightningrl.recipe import parse_recipe
from lightningrl.recipe.presets import PRESETS
from lightningrl_verl.start.combinations import REFUSALS, check_combinations

PAGE = Path(__file__).resolve().parent.parent / "docs" / "reference" / "algorithms.md"

HEADER = """\
<!-- Written by scripts/algorithms_reference.py from lightningrl/recipe/presets.py and the trainer's table. -->
# Algorithms

<!-- fragment -->
```yaml
algorithm: {preset: grpo}
```

An algorithm is a set of recipe keys. `algorithm.preset: NAME` sets the keys below, `optimiser.*` in each policy's own optimiser as well. Keys that the
recipe sets itself win. [Choose an algorithm](../how-to/choose-an-algorithm.md) says which to take; [the recipe reference](recipe.md) has every key.

All of them share one rule: a rollout weighs 1/N in the loss, with N the rollouts of the iteration. It does not matter how many calls, rows or tokens it
has, nor how many mini-batches the update has.
"""

OPTIONS: dict[str, dict[str, Any]] = {
    "rows of several calls": {"algorithm": {"rows": "merged"}},
    "rows of one call": {"algorithm": {"rows": "calls"}},
    "KL penalty": {"optimiser": {"kl_coeff": 0.01}},
    "several mini-batches and epochs": {"optimiser": {"mini_batches": 4, "ppo_epochs": 2}},
    "dynamic sampling": {"algorithm": {"further_tasks": 8}},
    "importance weights per token": {"algorithm": {"importance": "token"}},
    "importance weights per row": {"algorithm": {"importance": "sequence"}},
    "one rollout per task": {"algorithm": {"group_size": 1, "min_group": 1}},
}
"""Column -> what it adds to a preset."""


def main() -> None:
    """Write the page."""
    PAGE.write_text(render(), encoding="utf-8")
    sys.stdout.write(f"wrote {PAGE.name}\n")


def render() -> str:
    """The whole page."""
    reasons = list(dict.fromkeys(f"`{one.keys}`: {one.reason}." for one in REFUSALS))
    return "\n".join(
        [
            HEADER,
            "## Presets\n",
            "| preset | keys |",
            "|---|---|",
            *(f"| `{name}` | {_keys(name)} |" for name in PRESETS),
            "",
            "## What works together\n",
            "A dash means that it is refused at the start, by a reason of the list below.\n",
            f"| preset | {' | '.join(OPTIONS)} |",
            f"|---|{'---|' * len(OPTIONS)}",
            *(f"| `{name}` | {' | '.join(_cells(name))} |" for name in PRESETS),
            "",
            "## What is refused, and why\n",
            *(f"- {reason}" for reason in reasons),
            "",
        ]
    )


def accepted(preset: str, option: dict[str, Any]) -> bool:
    """Whether a recipe with the preset and the option's keys is accepted."""
    tree: dict[str, Any] = {
        "name": "demo",
        "agent": "module:agent",
        "policies": {"policy": {"model": "folder"}},
        "algorithm": {"iterations": 1, "tasks_per_iteration": 1, "group_size": 4, "preset": preset},
        "optimiser": {"learning_rate": 1e-6},
    }
    for section, keys in option.items():
        tree[section] = {**tree.get(section, {}), **keys}
    try:
        recipe = parse_recipe(tree)
        assert recipe.algorithm is not None
        found = find_assigner(recipe.algorithm.credit, recipe.algorithm.credit_args)
        values = isinstance(found, StatefulAssigner) and found.needs_values
        check_combinations(recipe, needs_values=values)
    except ConfigError:
        return False
    return True


def _cells(preset: str) -> list[str]:
    return ["yes" if accepted(preset, option) else "-" for option in OPTIONS.values()]


def _keys(name: str) -> str:
    parts: list[str] = []
    for section, keys in PRESETS[name].items():
        parts += [f"`{section}.{key}: {_yaml(value)}`" for key, value in keys.items()]
        parts += [] if keys else [f"`{section}: {{}}`"]
    return ", ".join(parts)


def _yaml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_yaml(one)}" for key, one in value.items()) + "}"
    return value if isinstance(value, str) else json.dumps(value)


if __name__ == "__main__":
    main()
