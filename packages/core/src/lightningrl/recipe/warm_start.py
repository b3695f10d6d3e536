"""The keys of supervised fine-tuning on demonstrations, before the first iteration or as a run of its own."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from lightningrl.errors import ConfigError
from lightningrl.recipe.section import Section
from lightningrl.user_input.arguments import Share

STORED = "run:"
"""How `demonstrations` begins where it names a run."""


class WarmStart(Section, frozen=True):
    """Supervised fine-tuning on demonstrations: `train` does it before the first iteration, `sft` alone."""

    demonstrations: str
    """`module:function` that returns dialogues, a path to a `.jsonl` file of them, relative to the recipe, or
    `run:NAME`: the stored rollouts of a run, by its folder or its name in `runs/`, or of a store's file."""
    learning_rate: float
    """AdamW's rate in the first update."""
    args: dict[str, Any] = msgspec.field(default_factory=dict)
    """Keyword arguments for the function."""
    limit: int | None = None
    """Use the first `limit` dialogues, or the `limit` best rollouts. `None`: all."""
    min_reward: float | None = None
    """Of a run's rollouts those with at least this final reward. Needed with `run:`, and only there."""
    held_out: Share = 0.1
    """Share of the demonstrations that are not trained on and scored instead, as `sft/val_loss`."""
    epochs: int = 1
    """How often all demonstrations are gone through."""
    batch_size: int = 16
    """Demonstrations of one update."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """How the rate moves from the first update to the last."""
    min_lr_ratio: float = 0.1
    """The schedule ends at `learning_rate` times this."""
    warmup: int = 0
    """First updates, over which the rate rises."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Of AdamW."""
    weight_decay: float = 0.0
    """Of AdamW."""
    grad_clip: float = 1.0
    """Largest gradient norm."""
    score_every: int | None = None
    """Updates between two scores of what is held out, at which `sft` also writes a checkpoint. `None`: an epoch."""
    tool_parser: str | None = None
    """In which form answers are written: `none`, `hermes`, `compact`. `None`: as the policy's `tool_parser` reads them;
    to be set where vLLM reads them by a parser of its own."""
    seed: int | None = None
    """Of what is held out and of the order. `None`: the recipe's."""

    @property
    def run(self) -> str | None:
        """The run that `demonstrations` names. `None`: it names a file or a function."""
        name = self.demonstrations.removeprefix(STORED)
        return name if name != self.demonstrations else None

    def check(self, key: str) -> None:
        """Check what types can't say.

        Args:
            key: the section's, for messages.

        Raises:
            ConfigError: a key is missing or of no use where the demonstrations come from.
        """
        if self.run is None:
            if self.min_reward is not None:
                raise ConfigError(
                    f"{key}.min_reward: only rollouts have rewards; leave it out, or name a run by"
                    f" '{key}.demonstrations: run:NAME'"
                )
            return
        if self.min_reward is None:
            raise ConfigError(
                f"{key}.min_reward: say which rollouts of {self.demonstrations!r} are worth imitating,"
                " by their least final reward"
            )
        if self.args:
            raise ConfigError(f"{key}.args: a run takes none; they are for 'module:function'")
