"""Presets: published algorithms, spelled out as the recipe keys that they stand for.

Invariant: a preset only fills keys that the recipe leaves out, so what a run does stands whole in its
resolved recipe, and a preset can do nothing that keys can't.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from lightningrl.errors import ConfigError
from lightningrl.user_input.names import suggest

_Sections = dict[str, dict[str, Any]]

PRESETS: dict[str, _Sections] = {
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


_OF_CREDIT = frozenset({"credit", "credit_args", "min_group"})
"""Keys of `algorithm` that a preset sets for its credit assigner."""


def with_preset(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's tree with the keys of its `algorithm.preset` filled in where it has none.

    Every optimiser gets those of `optimiser`, a policy's own as well. A recipe with another `credit` gets
    neither a critic nor what else the preset sets for its own.

    Args:
        tree: as read from YAML; without a preset it comes back as it is.

    Raises:
        ConfigError: there is no preset of that name.
    """
    algorithm = tree.get("algorithm")
    if not isinstance(algorithm, Mapping) or not isinstance(algorithm.get("preset"), str):
        return dict(tree)
    name: str = algorithm["preset"]
    if name not in PRESETS:
        raise ConfigError(f"algorithm.preset: there is no {name!r}.{suggest(name, PRESETS)}")
    preset = _fitting(PRESETS[name], algorithm)
    filled = dict(tree)
    for section, keys in preset.items():
        own = filled.get(section)
        if isinstance(own, Mapping):
            filled[section] = {**keys, **own}
    # Null says that there is none; an optimiser takes more than a preset knows.
    if "critic" in preset:
        filled.setdefault("critic", preset["critic"])
    return _with_optimisers(filled, preset["optimiser"])


def _with_optimisers(tree: dict[str, Any], keys: dict[str, Any]) -> dict[str, Any]:
    """With a preset's keys filled into the optimisers that policies have of their own."""
    policies = tree.get("policies")
    if not isinstance(policies, Mapping):
        return tree
    filled = dict(cast("Mapping[str, Any]", policies))
    for alias, policy in filled.items():
        own = policy.get("optimiser") if isinstance(policy, Mapping) else None
        if isinstance(own, Mapping):
            filled[alias] = {**policy, "optimiser": {**keys, **own}}
    return {**tree, "policies": filled}


def _fitting(preset: _Sections, algorithm: Mapping[str, Any]) -> _Sections:
    """A preset without what only its own credit assigner needs, if the recipe has another one."""
    credit = preset["algorithm"]["credit"]
    if algorithm.get("credit", credit) == credit:
        return preset
    kept = {key: value for key, value in preset["algorithm"].items() if key not in _OF_CREDIT}
    return {"algorithm": kept, "optimiser": preset["optimiser"]}
