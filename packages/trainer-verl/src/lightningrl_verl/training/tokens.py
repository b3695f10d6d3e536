"""What an iteration's rollouts cost in tokens.

Invariant: all that was sampled counts, whether or not it is trained: of groups that were skipped, and of attempts that
failed or were lost, too. What a record answered was not sampled: it counts where it was.
"""

from __future__ import annotations

from collections.abc import Sequence

from lightningrl.experience.transition import Group
from lightningrl.schema import Attempt, CallEvent
from lightningrl.store.base import Store
from lightningrl_verl.training.metrics import SAMPLED_TOKENS, Metrics

_ATTEMPTS_PER_READ = 64


async def count_tokens(
    store: Store, groups: Sequence[Group], attempts: Sequence[Attempt]
) -> Metrics:
    """The tokens of all model calls, `train/sampled_tokens` and `train/prompt_tokens`.

    Args:
        store: holds the calls of attempts that no group has.
        groups: what the iteration is trained on; it may hold live rollouts.
        attempts: of the iteration's own rollouts.
    """
    traces = [trace for group in groups for trace in group.traces]
    calls = [one.call for trace in traces for one in trace.calls if one.call is not None]
    prompt, sampled = _sums(calls)
    taken = {trace.attempt.id for trace in traces}
    others = [attempt.id for attempt in attempts if attempt.id not in taken]
    for start in range(0, len(others), _ATTEMPTS_PER_READ):
        for events in await store.events(others[start : start + _ATTEMPTS_PER_READ]):
            more = _sums([event for event in events if isinstance(event, CallEvent)])
            prompt, sampled = prompt + more[0], sampled + more[1]
    return {SAMPLED_TOKENS: sampled, "train/prompt_tokens": prompt}


def _sums(calls: Sequence[CallEvent]) -> tuple[int, int]:
    """Prompt and sampled tokens; what was given again cost nothing."""
    asked = [one for one in calls if one.replay_of is None]
    return sum(one.prompt_tokens for one in asked), sum(one.completion_tokens for one in asked)
