"""Checks of how rollouts ended, and of their rewards."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

from lightningrl.checks.evidence import Evidence, Finding, Level, counted, logs
from lightningrl.experience.transition import unjoined_rewards
from lightningrl.schema import (
    AGENT_FAILURES,
    FINAL,
    Failure,
    FailureKind,
    GroupId,
    LogTopic,
    Mode,
    Rollout,
    RolloutState,
)
from lightningrl.traces import AttemptRecord

_MOST_FAIL = 0.5
"""Share of failed rollouts from which on failing is the problem, and not one of the tasks."""

_LONGEST = 300
"""Characters of a failure's last line that are told."""


def missing_reward(found: Evidence) -> Iterator[Finding]:
    """Rollouts whose agent did its work have no reward, so they are never taken."""
    without = [rollout for rollout, record in found.ended if _lacks_reward(rollout, record)]
    if without:
        yield Finding(
            "missing reward",
            Level.PROBLEM,
            f"{counted(len(without), 'rollout')} ended without a final reward, the last being"
            f" {without[0].id!r}; such rollouts are not trained on",
            "name a `reward:` function in the recipe, return a number from the agent, or call"
            " lightningrl.final_reward(...)",
        )


def _lacks_reward(rollout: Rollout, record: AttemptRecord) -> bool:
    """One that is still awaited is not missing."""
    if rollout.reward is not None:
        return False
    if rollout.state is RolloutState.SUCCEEDED:
        return rollout.complete or FINAL not in rollout.spec.await_rewards
    failure = record.attempt.failure
    return failure is not None and failure.kind is FailureKind.NO_REWARD


def some_fail(found: Evidence) -> Iterator[Finding]:
    """A rollout fails: of a few that a person looks at each one counts."""
    yield from _failing(found, 0.0)


def most_fail(found: Evidence) -> Iterator[Finding]:
    """Most rollouts fail."""
    yield from _failing(found, _MOST_FAIL)


def _failing(found: Evidence, share: float) -> Iterator[Finding]:
    ended = found.ended
    failed = [record for rollout, record in ended if rollout.state is RolloutState.FAILED]
    if not failed or len(failed) <= share * len(ended):
        return
    last = failed[0]
    why = last.attempt.failure
    message = _headline(why.message) if why is not None and why.message.strip() else "unknown"
    blame = why.kind if why is not None else FailureKind.LOST
    algorithm = found.recipe.algorithm if found.recipe is not None else None
    reward = algorithm.failure_reward if algorithm is not None else None
    theirs = sum(_is_agents(record.attempt.failure) for record in failed)
    counts = f"{len(failed)} of the last {counted(len(ended), 'rollout')} failed, the last being"
    evidence = f"{counts} {last.rollout.id!r} ({blame.value}): {message}"
    remedy = (
        f"lightningrl show RUN --rollout {last.rollout.id} (or the tree that `try` prints) shows what it did and the"
        " traceback"
    )
    level = Level.PROBLEM
    if reward is not None and theirs:
        evidence += f". Reward {reward:g} stands for {theirs} of them (algorithm.failure_reward)"
        level = Level.WARNING if theirs == len(failed) else level
    elif theirs:
        remedy += (
            ". Failed rollouts are left out of training; if failing is the policy's own mistake, such as"
            " a turn limit that it ran into, 'algorithm.failure_reward' makes it one to learn from"
        )
    yield Finding("rollouts fail", level, evidence, remedy)


def _headline(message: str) -> str:
    """A failure on one line: what it begins with, and its last line of words.

    Of a command the cause stands in the last line that it wrote, of an exception with several lines often as well.
    Frames are indented; Node ends with its version.
    """
    first, *rest = message.strip().splitlines()
    said = [line for line in rest if line[:1].isalnum() and not line.startswith("Node.js v")]
    return f"{first} {said[-1][:_LONGEST]}" if said else first


def _is_agents(failure: Failure | None) -> bool:
    return failure is not None and failure.kind in AGENT_FAILURES


def all_rewards_equal(found: Evidence) -> Iterator[Finding]:
    """No group of training rollouts has two different rewards, so nothing can be learnt."""
    groups: dict[GroupId, list[float]] = defaultdict(list)
    for rollout, _ in found.ended:
        if rollout.spec.mode is Mode.TRAIN and rollout.reward is not None:
            groups[rollout.spec.group_id].append(rollout.reward)
    scored = [rewards_G for rewards_G in groups.values() if len(rewards_G) > 1]
    if not scored or any(min(rewards_G) < max(rewards_G) for rewards_G in scored):
        return
    values = Counter(rewards_G[0] for rewards_G in scored)
    value, times = values.most_common(1)[0]
    yield Finding(
        "all rewards equal",
        Level.PROBLEM,
        f"within each of the last {counted(len(scored), 'training group')} all rewards are equal"
        f" ({times} times {value:g}), so every advantage is 0",
        "check the reward function on a rollout (lightningrl show RUN); if it is right, choose"
        " tasks that the policy sometimes solves, a larger group_size, or a higher temperature",
    )


def one_reward(found: Evidence) -> Iterator[Finding]:
    """All rollouts of several tasks earned the same: nothing shows that the reward can differ."""
    rewards = [rollout.reward for rollout, _ in found.ended if rollout.reward is not None]
    tasks = {rollout.spec.task_id for rollout, _ in found.ended if rollout.reward is not None}
    if len(tasks) > 1 and len(set(rewards)) == 1:
        yield Finding(
            "all rewards equal",
            Level.WARNING,
            f"all {counted(len(rewards), 'rollout')}, of {len(tasks)} tasks, earned {rewards[0]:g}:"
            " nothing here shows that the reward can differ",
            "see in the trees above whether it should; more tasks by --tasks",
        )


def unknown_steps(found: Evidence) -> Iterator[Finding]:
    """Step rewards name steps that nobody took, so no call gets them."""
    lost = [
        (record, reward) for record in found.attempts for reward in unjoined_rewards(record.events)
    ]
    if lost:
        attempts = len({one.attempt.id for one, _ in lost})
        record, reward = lost[0]
        yield Finding(
            "unknown steps",
            Level.PROBLEM,
            f"{counted(len(lost), 'step reward')} of {counted(attempts, 'attempt')} for a step that is not"
            f" recorded, such as {reward.step_id!r} in rollout {record.rollout.id!r}: lost",
            "reward a step by the id of the model's answer, or inside the tool by lightningrl.reward(value)",
        )


def swallowed_errors(found: Evidence) -> Iterator[Finding]:
    """The reward function caught an exception and gave 0, so a right answer may have earned it."""
    caught: list[tuple[AttemptRecord, str]] = []
    rewarded = 0
    for record in found.decisive:
        rewarded += record.rollout.reward is not None
        told = [one.message for one in logs(record, LogTopic.REWARD_ERROR)]
        if told and record.rollout.reward == 0:
            caught.append((record, told[0]))
    if caught:
        record, message = caught[0]
        yield Finding(
            "reward errors",
            Level.PROBLEM if len(caught) == rewarded else Level.WARNING,
            f"in {len(caught)} of {counted(rewarded, 'rollout')} with a reward, such as {record.rollout.id!r}:"
            f" {message}",
            "let the function raise what is not the answer's fault: the rollout then fails and says why."
            " What needs the main thread (signal.alarm, math_verify's time limit) must be told to do"
            " without, or run in a process of its own",
        )
