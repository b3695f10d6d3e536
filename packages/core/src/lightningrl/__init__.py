"""Train the model behind any agent by reinforcement learning, without rewriting the agent.

Importing this loads nothing but the standard library: each name is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightningrl.capture.context import bind as bind
    from lightningrl.capture.context import step as step
    from lightningrl.capture.environment import environment as environment
    from lightningrl.capture.replaying import replaying as replaying
    from lightningrl.capture.resources import resource as resource
    from lightningrl.capture.rewards import Reward as Reward
    from lightningrl.capture.rewards import final_reward as final_reward
    from lightningrl.capture.rewards import reward as reward
    from lightningrl.capture.state import state as state
    from lightningrl.recipe import load_recipe as load_recipe
    from lightningrl.recorder import feedback as feedback
    from lightningrl.recorder import record as record
    from lightningrl.recorder import redact_texts as redact_texts
    from lightningrl.runner.live import rollout as rollout

_HOME = {
    "Reward": "lightningrl.capture.rewards",
    "bind": "lightningrl.capture.context",
    "environment": "lightningrl.capture.environment",
    "feedback": "lightningrl.recorder",
    "final_reward": "lightningrl.capture.rewards",
    "load_recipe": "lightningrl.recipe",
    "record": "lightningrl.recorder",
    "redact_texts": "lightningrl.recorder",
    "replaying": "lightningrl.capture.replaying",
    "resource": "lightningrl.capture.resources",
    "reward": "lightningrl.capture.rewards",
    "rollout": "lightningrl.runner.live",
    "state": "lightningrl.capture.state",
    "step": "lightningrl.capture.context",
}

__all__ = [
    "Reward",
    "bind",
    "environment",
    "feedback",
    "final_reward",
    "load_recipe",
    "record",
    "redact_texts",
    "replaying",
    "resource",
    "reward",
    "rollout",
    "state",
    "step",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'lightningrl' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
