"""Which calls train which policy: the rows of each, cut from traces.

Invariant: a call trains the policy that answered it and no other; a frozen policy, and agents that a policy
doesn't train, give no row a trained token. What is left out is counted with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lightningrl.experience.trained_calls import STALE, Lens
from lightningrl.experience.trajectory import Merge, Row, Span, merge
from lightningrl.experience.transition import Group, Transition

NOTHING_TRAINABLE = "no call of it is trainable"
"""Why a live rollout is passed over: the run's policies answered none of its calls, or trains none."""


@dataclass(frozen=True)
class Piece:
    """What one trace has for one policy."""

    group: int
    trace: int
    """Place within the group."""
    merged: Merge
    """Its spans' indices are those of the trace's transitions."""


def cut(groups: Sequence[Group], lenses: Mapping[str, Lens]) -> dict[str, list[Piece]]:
    """Alias of each trainable policy -> its pieces, in the order of the traces.

    Args:
        groups: what an iteration took.
        lenses: of the trainable policies.
    """
    return {
        alias: [
            Piece(g, i, merge([lens.look(one) for one in trace.transitions]))
            for g, group in enumerate(groups)
            for i, trace in enumerate(group.traces)
        ]
        for alias, lens in lenses.items()
    }


def unfit(transitions: Sequence[Transition], lenses: Mapping[str, Lens]) -> str | None:
    """Why a rollout is not worth an iteration's while. `None`: `cut` finds something in it, none of it stale.

    `STALE` where a call that would be trained is too old, `NOTHING_TRAINABLE` where no call would be.
    """
    seen = [
        lens.look(one)
        for lens in lenses.values()
        for one in transitions
        if one.call is not None and one.call.policy == lens.alias
    ]
    if any(one.untrainable == STALE for one in seen):
        return STALE
    trainable = any(one.untrainable is None and one.token_bytes for one in seen)
    return None if trainable else NOTHING_TRAINABLE


def behind(row: Row, span: Span) -> Row:
    """The row up to the end of a call's answer, with a call of one token behind it.

    A critic reads its value before a call's first token: of this one it is what follows the answer. The token
    itself stands for any, and is not seen.
    """
    token_ids = np.append(row.token_ids[: span.stop], np.int32(0)).astype(np.int32)
    inside = np.arange(span.stop + 1) == span.stop
    zeros = np.zeros(span.stop + 1, np.float32)
    return Row(
        row.rollout_id, token_ids, inside, zeros, zeros, (Span(0, span.stop, span.stop + 1),)
    )


def one_row_per_call(rows: Sequence[Row]) -> list[Row]:
    """Each call of merged rows as a row of its own, for losses whose ratio is one number per row.

    All before a call is its prompt, nothing follows it. Trained tokens, their log-probs and advantages
    stay what they are; no rows give none.
    """
    separate: list[Row] = []
    for row in rows:
        for span in row.spans:
            inside = np.arange(span.stop) >= span.start
            separate.append(
                Row(
                    rollout_id=row.rollout_id,
                    token_ids=row.token_ids[: span.stop],
                    mask=inside,
                    logprobs=np.where(inside, row.logprobs[: span.stop], np.float32(0)),
                    advantages=np.where(inside, row.advantages[: span.stop], np.float32(0)),
                    spans=(span,),
                )
            )
    return separate
