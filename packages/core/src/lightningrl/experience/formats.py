"""How often answers have the form that was asked of them in words (`policies.NAME.constrained: free`)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from lightningrl.conversation.rewriting import IN_WORDS
from lightningrl.experience.transition import Transition


class Formats(NamedTuple):
    """Answered calls of which a form was asked in words."""

    asked: int
    right: int
    """Those whose answer has it."""

    @property
    def rate(self) -> float | None:
        """The share. `None`: of no call a form was asked."""
        return self.right / self.asked if self.asked else None


def count_formats(transitions: Iterable[Transition]) -> Formats:
    """Count the model calls among transitions."""
    choices = [
        one.choice
        for one in transitions
        if one.call is not None and any(rewrite.name in IN_WORDS for rewrite in one.call.rewrites)
    ]
    answered = [one for one in choices if one is not None]
    return Formats(len(answered), sum(one.wrong_format is None for one in answered))
