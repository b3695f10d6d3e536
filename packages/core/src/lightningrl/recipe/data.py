"""The keys that say where tasks and live rollouts come from."""

from __future__ import annotations

from typing import Any

import msgspec

from lightningrl.recipe.section import Section


class DataSource(Section, frozen=True):
    """Where the tasks of one split come from."""

    source: str
    """`module:function` that returns the rows, or a path to a `.jsonl` file, relative to the recipe."""
    args: dict[str, Any] = msgspec.field(default_factory=dict)
    """Keyword arguments for the function."""
    limit: int | None = None
    """Use the first `limit` rows. `None`: all."""


class Data(Section, frozen=True):
    """The tasks. Each row is a JSON object; `id` is its task id, else its index is."""

    train: DataSource | None = None
    """What is trained on. Null where `algorithm.tasks_per_iteration` is 0."""
    val: DataSource | None = None
    test: DataSource | None = None
    """Scored once, when training has ended."""


class Live(Section, frozen=True):
    """Training on live rollouts: those of agents that serve people through this run's server."""

    min_rollouts: int
    """Rewarded live rollouts that an iteration waits for, and trains on beside its tasks."""
    max_rollouts: int | None = None
    """The most that an iteration trains on; others wait for the next one. `None`: all that are there."""
    key: str = "LIGHTNINGRL_KEY"
    """Environment variable of the trainer that holds the key by which these agents' processes reach the server."""
