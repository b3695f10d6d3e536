"""Presets: published algorithms, spelled out as the recipe keys that they stand for.

Invariant: a preset only fills keys that the recipe leaves out, so what a run does stands whole in its
resolved recipe, and a preset can do nothing that keys can't.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from lightningrl.errors import ConfigError
from lightningrl.nearest import suggest

PRESETS: dict[str, dict[str, Any]] = {
    "ppo": {
        "algorithm": {
            "credit": "gae",
            "credit_args": {"gamma": 1.0, "lam": 0.95},
            "min_group": 1,
        },
        "critic": {},
        "optimiser": {"clip_low": 0.2, "clip_high": 0.2},
    },
    "grpo": {
        "algorithm": {"credit": "broadcast", "credit_args": {"normalise": "std"}},
        "optimiser": {"clip_low": 0.2, "clip_high": 0.2},
    },
    "dr_grpo": {
        "algorithm": {"credit": "broadcast", "credit_args": {"normalise": "mean"}},
        "optimiser": {"clip_low": 0.2, "clip_high": 0.2},
    },
    "rloo": {
        "algorithm": {"credit": "broadcast", "credit_args": {"normalise": "leave_one_out"}},
        "optimiser": {"clip_low": 0.2, "clip_high": 0.2},
    },
    "reinforce_plus_plus": {
        "algorithm": {
            "credit": "broadcast",
            "credit_args": {"normalise": "reinforce++"},
            "min_group": 1,
        },
        "optimiser": {"clip_low": 0.2, "clip_high": 0.2},
    },
    "dapo": {
        "algorithm": {
            "credit": "broadcast",
            "credit_args": {"normalise": "std"},
            "further_tasks": 64,
        },
        "optimiser": {"clip_low": 0.2, "clip_high": 0.28},
    },
    "gspo": {
        "algorithm": {
            "credit": "broadcast",
            "credit_args": {"normalise": "std"},
            "loss": "gspo",
            "rows": "calls",
        },
        "optimiser": {"clip_low": 3e-4, "clip_high": 4e-4},
    },
    "cispo": {
        "algorithm": {
            "credit": "broadcast",
            "credit_args": {"normalise": "std"},
            "loss": "cispo",
        },
        # No lower bound, as published: 1 - 10 is below every ratio.
        "optimiser": {"clip_low": 10.0, "clip_high": 0.2},
    },
}
"""Name -> section -> key -> value. PPO: arXiv 1707.06347, with GAE over calls. GRPO: arXiv 2402.03300. Dr. GRPO: 2503.20783, its advantage; the loss
weighs rollouts alike. RLOO: 2402.14740. REINFORCE++: 2501.03262. DAPO: 2503.14476,
its clip-higher and dynamic sampling; the loss weighs rollouts alike, not tokens. GSPO: 2507.18071, section 5.1. CISPO:
2506.13585."""


def with_preset(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's tree with the keys of its `algorithm.preset` filled in where it has none.

    Args:
        tree: as read from YAML; without a preset it comes back as it is.

    Raises:
        ConfigError: there is no preset of that name.
    """
    algorithm = tree.get("algorithm")
    name = algorithm.get("preset") if isinstance(algorithm, Mapping) else None
    if not isinstance(name, str):
        return dict(tree)
    if name not in PRESETS:
        raise ConfigError(f"algorithm.preset: there is no {name!r}.{suggest(name, PRESETS)}")
    filled = dict(tree)
    for section, keys in PRESETS[name].items():
        given = filled.get(section)
        if given is None or isinstance(given, Mapping):
            own = cast("Mapping[str, Any]", given or {})
            filled[section] = {**_fitting(keys, own), **own}
    return filled


def _fitting(keys: dict[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """A preset's keys without arguments for a credit assigner that the recipe replaces."""
    if own.get("credit", keys.get("credit")) == keys.get("credit"):
        return keys
    return {key: value for key, value in keys.items() if key != "credit_args"}
