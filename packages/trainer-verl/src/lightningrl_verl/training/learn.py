"""From taken groups to an update: traces, credit, rows. Pure."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightningrl.credit import CreditAssigner, assign
from lightningrl.errors import RunError
from lightningrl.recipe import PolicyRecipe, Recipe
from lightningrl.schema import TakenGroup
from lightningrl.trajectory import Break, Merge, Row, merge, with_credit
from lightningrl.transition import Group, Trace
from lightningrl_verl.training.metrics import Metrics

_BREAKS_KEPT = 20
"""Examples of breaks in the drift report; all are counted."""


@dataclass(frozen=True)
class Lesson:
    """What one iteration trains on."""

    rows: tuple[Row, ...]
    """With advantages. Those without signal are left out unless the loss has more terms than the
    policy's: they change no gradient of it."""
    metrics: Metrics
    breaks: tuple[Break, ...]


def prepare(
    groups: Sequence[Group],
    assigner: CreditAssigner,
    params: dict[str, Any],
    *,
    keep_all: bool = False,
) -> Lesson:
    """Assign credit, merge transitions into rows and weigh them.

    Each rollout weighs 1/N with N the rollouts of all groups, those without signal included. Groups
    without a trace, or no groups at all, give no rows.

    Args:
        groups: what the iteration took.
        assigner: the recipe's.
        params: its parameters.
        keep_all: keep rows without signal, for losses that they are part of (entropy, KL).
    """
    credit = assign(assigner, groups, params)
    count = sum(len(group.traces) for group in groups)
    rows: list[Row] = []
    merges: list[Merge] = []
    for group, credit_G in zip(groups, credit, strict=True):
        for trace, credit_T in zip(group.traces, credit_G, strict=True):
            merged = merge(trace.transitions)
            merges.append(merged)
            rows += with_credit(merged.rows, credit_T, count)
    signal = tuple(row for row in rows if row.advantages.any())
    breaks = tuple(one for merged in merges for one in merged.breaks)
    kept = tuple(rows) if keep_all else signal
    return Lesson(rows=kept, metrics=_metrics(groups, rows, signal, merges), breaks=breaks)


def check_models(groups: Sequence[Group], policies: dict[str, PolicyRecipe]) -> None:
    """Refuse to guess which of several models the policy stands for.

    Raises:
        RunError: the agents named several models, and no policy says which ones it replaces.
    """
    if any(policy.replaces or policy.agents for policy in policies.values()):
        return
    seen = Counter(
        one.call.model
        for group in groups
        for trace in group.traces
        for one in trace.calls
        if one.call is not None
    )
    if len(seen) > 1:
        listing = ", ".join(f"{model!r} ({count} calls)" for model, count in seen.most_common())
        raise RunError(
            f"the agent called several models: {listing}. Say which of them are trained with"
            " 'policies.NAME.replaces: [MODEL]' or 'policies.NAME.agents: [AGENT]'"
        )


def digest(taken: Sequence[TakenGroup]) -> str:
    """A short digest of the rollouts that an iteration trains on, in order."""
    ids = [one.rollout.id for group in taken for one in group.rollouts]
    return hashlib.blake2b("\n".join(ids).encode(), digest_size=8).hexdigest()


def update_drift(drift: dict[str, Any], iteration: int, lesson: Lesson) -> dict[str, Any]:
    """The drift report with one iteration more.

    A report has, per iteration, the metrics named `drift/*`, and of the latest breaks some examples
    with both token windows.
    """
    iterations = {**drift.get("iterations", {}), str(iteration): _drift_of(lesson.metrics)}
    examples = [
        {
            "rollout": one.rollout_id,
            "step": one.step_id,
            "cause": one.cause,
            "position": one.position,
            "expected": list(one.expected),
            "found": list(one.found),
        }
        for one in lesson.breaks[:_BREAKS_KEPT]
    ]
    return {"iterations": iterations, "breaks": examples or drift.get("breaks", [])}


def has_regulariser(recipe: Recipe) -> bool:
    """Whether the loss has an entropy or KL term, which rows without signal are part of."""
    optimiser = recipe.optimiser
    assert optimiser is not None
    return optimiser.entropy_coeff != 0 or optimiser.kl_coeff != 0


def _drift_of(metrics: Metrics) -> Metrics:
    return {key: value for key, value in metrics.items() if key.startswith("drift/")}


def _metrics(
    groups: Sequence[Group], rows: Sequence[Row], signal: Sequence[Row], merges: Sequence[Merge]
) -> Metrics:
    traces = [trace for group in groups for trace in group.traces]
    rewards = [trace.reward for trace in traces]
    continuing = sum(merged.continuing for merged in merges)
    untrainable: Counter[str] = Counter()
    for merged in merges:
        untrainable.update(merged.untrainable)
    causes = Counter(one.cause for merged in merges for one in merged.breaks)
    return {
        "train/reward": sum(rewards) / len(rewards) if rewards else None,
        "train/rollouts": len(traces),
        "train/groups": len(groups),
        "train/groups_without_signal": sum(_flat(group.traces) for group in groups),
        "train/calls_per_rollout": _mean([len(trace.calls) for trace in traces]),
        "train/rows": len(rows),
        "train/rows_with_signal": len(signal),
        "train/tokens": sum(row.trained_tokens for row in rows),
        "drift/merged_share": sum(m.continued for m in merges) / continuing if continuing else None,
        "drift/breaks": sum(causes.values()),
        "drift/breaks_by_cause": dict(causes),
        "drift/untrainable_tokens": sum(untrainable.values()),
        "drift/untrainable_by_reason": dict(untrainable),
    }


def _flat(traces: Sequence[Trace]) -> bool:
    return len({trace.reward for trace in traces}) < 2


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
