"""One policy's fine-tuning, update by update, by whoever trains it: one rank here or many in a cluster.

Invariant: an update is a function of the weights, the material and its number.
"""

from __future__ import annotations

from lightningrl_verl.supervised.course import Course
from lightningrl_verl.supervised.rows import Material
from lightningrl_verl.training.metrics import Metrics
from lightningrl_verl.worker.learner import Learner


class Tuition:
    """A learner that is taught a course on some material."""

    def __init__(self, learner: Learner, material: Material, course: Course) -> None:
        """The learner must have been started with the loss `SUPERVISED`."""
        self.learner = learner
        self.material = material
        self.course = course
        self._held_out = [row for example in material.held_out for row in example.rows]

    async def update(self, number: int) -> Metrics:
        """Make the update of that number, from 1; return `sft/*`.

        Raises:
            RunError: it diverged, or a rank has died.
        """
        examples = [self.material.train[index] for index in self.course.batch(number)]
        rows = [row for example in examples for row in example.rows]
        measured = await self.learner.imitate(rows)
        return {
            "sft/loss": measured["loss"],
            "sft/demonstrations": len(examples),
            "sft/rows": len(rows),
            "sft/tokens": sum(row.trained_tokens for row in rows),
            "sft/epoch": self.course.epoch(number),
            "sft/grad_norm": measured["grad_norm"],
            "sft/lr": measured["lr"],
        }

    async def score(self) -> Metrics:
        """`sft/val_loss` under the weights as they are; nothing where nothing is held out."""
        if not self._held_out:
            return {}
        return {"sft/val_loss": await self.learner.surprise(self._held_out)}
