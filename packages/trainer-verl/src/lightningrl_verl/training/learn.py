"""From taken groups to an update: traces, credit, rows. Pure."""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lightningrl.checks import undeclared_models
from lightningrl.credit import Credit
from lightningrl.errors import NothingTrainable, RunError
from lightningrl.experience.drift import Drift, RolloutDrift, rollout_drift, total
from lightningrl.experience.forks import rollout_weights, unforked
from lightningrl.experience.formats import count_formats
from lightningrl.experience.trainable import TrainableCalls
from lightningrl.experience.trajectory import LossShare, Row, with_credit
from lightningrl.experience.transition import Group, Trace, Transition, mean_parts
from lightningrl.metrics import seen_rewards
from lightningrl.recipe import Optimiser, PolicyRecipe
from lightningrl.schema import RolloutState, StepKind, TakenGroup
from lightningrl_verl.training.metrics import Metrics
from lightningrl_verl.training.rows import Piece, one_row_per_call


@dataclass(frozen=True)
class Lesson:
    """What one iteration trains on."""

    rows: dict[str, tuple[Row, ...]]
    """Alias of each trainable policy -> its rows, with advantages. Those without signal are left out
    unless the loss has more terms than the policy's: they change no gradient of it."""
    metrics: Metrics
    drift: tuple[RolloutDrift, ...]
    """Of each rollout for each trainable policy, without gaps."""
    calls: TrainableCalls
    """Of all model calls of the groups."""


def prepare(
    groups: Sequence[Group],
    pieces: Mapping[str, Sequence[Piece]],
    credit: Credit,
    calls: TrainableCalls,
    *,
    per_call: bool = False,
    share: LossShare = "tokens",
    keep_all: Collection[str] = (),
) -> Lesson:
    """Give rows their credit and weigh them.

    For each policy a rollout weighs 1/N with N the rollouts of all groups, those without signal
    included; branches are not counted, and share the weight of their parent's group. Groups without a trace, or no
    groups at all, give no rows.

    Args:
        groups: what the iteration took.
        pieces: of the groups, by `cut`.
        credit: of the groups' transitions.
        calls: the groups' model calls, counted.
        per_call: make each call a row of its own.
        share: what shares a rollout's weight evenly.
        keep_all: policies that keep rows without signal, for losses that they are part of (entropy, KL).
    """
    plain = unforked(groups)
    count = sum(len(group.traces) for group in plain)
    weights = rollout_weights(groups)
    rows = {
        alias: [
            row
            for piece in of_policy
            if (weight := weights[piece.group][piece.trace])
            for row in _weighted(piece, credit, count / weight, per_call=per_call, share=share)
        ]
        for alias, of_policy in pieces.items()
    }
    drift = tuple(
        rollout_drift(groups[piece.group].traces[piece.trace].rollout.id, alias, piece.merged)
        for alias, of_policy in pieces.items()
        for piece in of_policy
    )
    kept = {
        alias: tuple(row for row in of_policy if alias in keep_all or row.advantages.any())
        for alias, of_policy in rows.items()
    }
    every = [row for of_policy in rows.values() for row in of_policy]
    metrics = _metrics(plain, every) | _drift_metrics(total(drift))
    metrics |= {f"credit/{name}": value for name, value in credit.metrics.items()}
    parts = mean_parts(trace.parts for group in plain for trace in group.traces)
    metrics |= {f"train/part/{name}": value for name, value in parts.items()}
    metrics["credit/unfit"] = float(credit.unfit is not None)
    metrics["train/trainable_share"] = calls.share
    return Lesson(rows=kept, metrics=metrics, drift=drift, calls=calls)


def _weighted(
    piece: Piece, credit: Credit, count: float, *, per_call: bool, share: LossShare
) -> list[Row]:
    rows = with_credit(piece.merged.rows, credit[piece.group][piece.trace], count, share)
    return one_row_per_call(rows) if per_call else rows


def check_models(
    traces: Sequence[Sequence[Transition]], policies: Mapping[str, PolicyRecipe]
) -> None:
    """Refuse to guess which of several models the policy stands for.

    Raises:
        RunError: the agents named several models, and no policy says which ones it replaces.
    """
    seen = undeclared_models((one for trace in traces for one in trace), policies)
    if seen:
        listing = ", ".join(f"{model!r} ({count} calls)" for model, count in seen.items())
        raise RunError(
            f"the agent called several models: {listing}. Say which of them are trained with"
            " 'policies.NAME.replaces: [MODEL]' or 'policies.NAME.agents: [AGENT]'"
        )


def check_trainable(lesson: Lesson, iteration: int) -> None:
    """Refuse an iteration none of whose tokens may be trained: the run would go on and learn nothing.

    An iteration whose groups were all skipped has no calls, and is the guards' matter.

    Raises:
        NothingTrainable: with the reasons, counted.
    """
    if lesson.metrics["train/rollouts"] and not lesson.metrics["train/tokens"]:
        raise NothingTrainable(
            f"iteration {iteration} has no token that may be trained, in {lesson.metrics['train/rollouts']}"
            f" rollouts: {lesson.calls.reasons}. Nothing was changed. Find the calls with 'lightningrl show',"
            " mend what the reasons name, and start a run under another 'name'"
        )


def digest(taken: Sequence[TakenGroup]) -> str:
    """A short digest of the rollouts that an iteration trains on, in order."""
    ids = [one.rollout.id for group in taken for one in group.rollouts]
    return hashlib.blake2b("\n".join(ids).encode(), digest_size=8).hexdigest()


def has_regulariser(optimiser: Optimiser) -> bool:
    """Whether the loss has an entropy or KL term, which rows without signal are part of."""
    return optimiser.entropy_coeff != 0 or optimiser.kl_coeff != 0


def _metrics(groups: Sequence[Group], rows: Sequence[Row]) -> Metrics:
    traces = [trace for group in groups for trace in group.traces]
    rewards = [trace.reward for trace in traces]
    return {
        "train/reward": _mean(rewards),
        "train/reward_std": statistics.pstdev(rewards) if rewards else None,
        "train/reward_min": min(rewards, default=None),
        "train/reward_max": max(rewards, default=None),
        "train/failures_rewarded": sum(
            trace.rollout.state is RolloutState.FAILED for trace in traces
        ),
        "train/rollouts": len(traces),
        "train/groups": len(groups),
        "train/groups_without_signal": sum(
            len({trace.reward for trace in group.traces}) < 2 for group in groups
        ),
        "train/calls_per_rollout": _mean([len(trace.calls) for trace in traces]),
        "train/tool_calls_per_rollout": _mean([_tool_calls(trace) for trace in traces]),
        "train/tokens_per_call": _mean(
            [len(call.token_ids) for trace in traces for call in trace.calls]
        ),
        "train/format_rate": count_formats(
            one for trace in traces for one in trace.transitions
        ).rate,
        "train/entropy": _surprise(rows),
        "train/rows": len(rows),
        "train/rows_with_signal": sum(bool(row.advantages.any()) for row in rows),
        "train/tokens": sum(row.trained_tokens for row in rows),
        "train/tokens_with_signal": sum(int(np.count_nonzero(row.advantages)) for row in rows),
    }


def _drift_metrics(drift: Drift) -> Metrics:
    return {
        "drift/merged_share": drift.merged_share,
        "drift/breaks": sum(drift.breaks.values()),
        "drift/breaks_by_cause": drift.breaks,
        "drift/masked_tokens": drift.masked,
        "drift/dropped_tokens": drift.dropped,
        "drift/untrainable_by_reason": drift.untrainable,
    }


def flat_share(rewards: Sequence[Sequence[float]]) -> float | None:
    """Share of the groups of several rollouts whose rewards are all equal; `None` where there are none.

    Args:
        rewards: of each group's members.
    """
    return _mean([len(set(of_group)) < 2 for of_group in rewards if len(of_group) > 1])


def solved_share(rewards: Sequence[Sequence[float]], lines: Sequence[Metrics]) -> float | None:
    """Share of the groups all of whose rewards are the best that the run has seen.

    A run that has only ever seen one reward can't know that it is a good one, and has solved nothing. No
    groups give `None`.

    Args:
        rewards: of the members of each group of this iteration; groups without any don't count.
        lines: the metrics of the iterations before.
    """
    now = [reward for of_group in rewards for reward in of_group]
    worst, best = seen_rewards(lines, now)
    return _mean(
        [
            worst < best and all(reward == best for reward in of_group)
            for of_group in rewards
            if of_group
        ]
    )


def _tool_calls(trace: Trace) -> int:
    return sum(one.kind is StepKind.TOOL for one in trace.transitions)


def _surprise(rows: Sequence[Row]) -> float | None:
    """Mean of minus the log-prob of sampled tokens, whose expectation is the entropy."""
    tokens = sum(row.trained_tokens for row in rows)
    return -float(sum(row.logprobs.sum() for row in rows)) / tokens if tokens else None


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
