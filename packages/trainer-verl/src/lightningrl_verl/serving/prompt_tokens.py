"""How much of their prompts engines computed, and how much of them was there already."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec


class PromptTokens(msgspec.Struct, frozen=True):
    """Counters of an engine, by the names that its statistics have."""

    prefill_tokens: int
    """Computed."""
    reused_tokens: int
    """Whose keys and values were there, from an earlier turn or from another prompt that begins alike."""


def total(of_engines: Iterable[PromptTokens]) -> PromptTokens:
    """Those of several engines together."""
    found = list(of_engines)
    return PromptTokens(
        sum(one.prefill_tokens for one in found), sum(one.reused_tokens for one in found)
    )


def reused_share(before: PromptTokens | None, after: PromptTokens | None) -> float | None:
    """Of the prompt tokens between two moments the share that was reused.

    `None`: there were none, or an engine was started anew meanwhile and counts from 0 again, or it does not say.
    """
    if before is None or after is None:
        return None
    computed = after.prefill_tokens - before.prefill_tokens
    reused = after.reused_tokens - before.reused_tokens
    if min(computed, reused) < 0 or computed + reused == 0:
        return None
    return reused / (computed + reused)
