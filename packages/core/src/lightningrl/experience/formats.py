"""How often answers have the form that was asked of them in words (`policies.NAME.constrained: free`)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from lightningrl.conversation.rewriting import IN_WORDS
from lightningrl.experience.transition import Transition
from lightningrl.schema import UNJUDGED


class Formats(NamedTuple):
    """Answered calls of which a form was asked in words."""

    asked: int
    """Those whose answer could be judged."""
    right: int
    """Those of them whose answer has it."""
    unjudged: int = 0
    """Others: their answer or its schema is one that the gateway does not judge."""

    @property
    def rate(self) -> float | None:
        """The share. `None`: no answer was judged."""
        return self.right / self.asked if self.asked else None


def count_formats(transitions: Iterable[Transition]) -> Formats:
    """Count the model calls among transitions."""
    choices = [
        one.choice
        for one in transitions
        if one.call is not None and any(rewrite.name in IN_WORDS for rewrite in one.call.rewrites)
    ]
    answered = [one for one in choices if one is not None]
    wrong = [one.wrong_format for one in answered if one.wrong_format is not None]
    unjudged = sum(one.startswith(UNJUDGED) for one in wrong)
    return Formats(len(answered) - unjudged, len(answered) - len(wrong), unjudged)
