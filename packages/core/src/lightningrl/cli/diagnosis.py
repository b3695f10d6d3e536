"""What can be wrong with a run, each as one small check of what was found.

Invariant: pure. A check looks at a `Snapshot` alone and returns `Problem`s, each with its evidence (ids
and numbers that can be looked up) and its remedy; a run that has ended is not blamed for what it no
longer needs (runners, engines, an open gateway).
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from lightningrl.schema import (
    TOOL_PARSER_ERROR,
    Attempt,
    CallEvent,
    CallStatus,
    FailureKind,
    GroupId,
    Mode,
    Policy,
    Rollout,
    RolloutState,
    Worker,
)
from lightningrl.traces import AttemptRecord

_MOST_FAIL = 0.5
"""Share of failed rollouts from which on failing is the problem, and not one of the tasks."""

_TOOL_CALL_TEXT = re.compile(
    r"<tool_call>|<function=|<\|tool_call|\[TOOL_CALLS\]"
    r'|\{\s*"(?:name|function|tool)"\s*:.{0,200}"(?:arguments|parameters)"\s*:',
    re.DOTALL,
)
"""How models write tool calls in their text: Hermes, Llama, Mistral, and bare JSON."""


@dataclass(frozen=True)
class Problem:
    """Something that is wrong."""

    name: str
    evidence: str
    """What was found: ids, counts, times."""
    remedy: str
    """What to do about it."""


@dataclass(frozen=True)
class Engine:
    """One endpoint of a policy, as it answered when it was asked."""

    policy: str
    url: str
    problem: str | None
    """What went wrong. `None`: it answered."""


@dataclass(frozen=True)
class Snapshot:
    """What a run's store said at one instant."""

    run: str
    now: datetime
    """The store's clock."""
    waiting: int
    """Rollouts that are queued."""
    running: tuple[Attempt, ...]
    """Attempts that run, as far as the store knows."""
    workers: tuple[Worker, ...]
    """Seen within the last half minute."""
    policies: tuple[Policy, ...]
    engines: tuple[Engine, ...]
    recent: tuple[tuple[AttemptRecord, ...], ...]
    """Attempts of the rollouts that ended last, newest first."""

    @property
    def active(self) -> bool:
        """Whether rollouts are still to be run."""
        return self.waiting > 0 or bool(self.running)

    @property
    def ended(self) -> Iterator[tuple[Rollout, AttemptRecord]]:
        """Recent rollouts with the attempt that decided them."""
        return ((records[-1].rollout, records[-1]) for records in self.recent if records)

    @property
    def calls(self) -> Iterator[CallEvent]:
        """The calls of the recent rollouts."""
        for records in self.recent:
            for record in records:
                for event in record.events:
                    if isinstance(event, CallEvent):
                        yield event


Check = Callable[[Snapshot], list[Problem]]


def no_runner(found: Snapshot) -> list[Problem]:
    """Rollouts wait and nobody runs them."""
    if not found.waiting or found.workers:
        return []
    return [
        Problem(
            "no runner",
            f"{_count(found.waiting, 'rollout')} of run {found.run!r} are queued, and no runner has"
            " asked for work within 30 s",
            "start one: lightningrl runner RECIPE --server URL (`lightningrl train` starts its own;"
            " its logs/ say why they ended)",
        )
    ]


def expired_lease(found: Snapshot) -> list[Problem]:
    """Attempts whose worker is silent, and that nobody has ended."""
    late = [one for one in found.running if one.lease_expires_at < found.now]
    if not late:
        return []
    oldest = min(late, key=lambda one: one.lease_expires_at)
    seconds = (found.now - oldest.lease_expires_at).total_seconds()
    return [
        Problem(
            "expired lease",
            f"{_count(len(late), 'running attempt')} without a lease; that of attempt {oldest.id!r}"
            f" (rollout {oldest.rollout_id!r}, worker {oldest.worker!r}) ran out {seconds:.0f} s ago",
            "the server ends such attempts every second, so it is not running: start it again"
            " (lightningrl serve, or lightningrl train, which resumes)",
        )
    ]


def engine_down(found: Snapshot) -> list[Problem]:
    """An endpoint of a policy does not answer."""
    if not found.active:
        return []
    return [
        Problem(
            "engine down",
            f"endpoint {engine.url!r} of policy {engine.policy!r}: {engine.problem}",
            "start the engine again, or register its new URL; calls are retried meanwhile",
        )
        for engine in found.engines
        if engine.problem is not None
    ]


def gateway_held(found: Snapshot) -> list[Problem]:
    """New calls wait for a weight sync, or are refused because one never finished."""
    problems: list[Problem] = []
    for policy in found.policies:
        if policy.held_until is None or not found.active:
            continue
        seconds = (policy.held_until - found.now).total_seconds()
        if seconds > 0:
            evidence = f"new calls of policy {policy.name!r} wait, for {seconds:.0f} s more at most"
            remedy = "a weight sync takes seconds: look again; if it stays, the trainer hangs in it"
        else:
            evidence = (
                f"the hold of policy {policy.name!r} (version {policy.version}) ran out"
                f" {-seconds:.0f} s ago, and calls are refused since: its weights are unknown"
            )
            remedy = "the trainer ended in a weight sync: start it again, it resumes and publishes"
        problems.append(Problem("gateway held", evidence, remedy))
    return problems


def all_rewards_equal(found: Snapshot) -> list[Problem]:
    """No group of training rollouts has two different rewards, so nothing can be learnt."""
    groups: dict[GroupId, list[float]] = defaultdict(list)
    for rollout, _ in found.ended:
        if rollout.spec.mode is Mode.TRAIN and rollout.reward is not None:
            groups[rollout.spec.group_id].append(rollout.reward)
    scored = [rewards_G for rewards_G in groups.values() if len(rewards_G) > 1]
    if not scored or any(min(rewards_G) < max(rewards_G) for rewards_G in scored):
        return []
    values = Counter(rewards_G[0] for rewards_G in scored)
    value, times = values.most_common(1)[0]
    return [
        Problem(
            "all rewards equal",
            f"within each of the last {_count(len(scored), 'training group')} all rewards are equal"
            f" ({times} times {value:g}), so every advantage is 0",
            "check the reward function on a rollout (lightningrl show RUN); if it is right, choose"
            " tasks that the policy sometimes solves, a larger group_size, or a higher temperature",
        )
    ]


def missing_reward(found: Snapshot) -> list[Problem]:
    """Rollouts whose agent did its work have no reward, so they are never taken."""
    without = [rollout for rollout, record in found.ended if _lacks_reward(rollout, record)]
    if not without:
        return []
    return [
        Problem(
            "missing reward",
            f"{_count(len(without), 'recent rollout')} ended without a final reward, the last being"
            f" {without[0].id!r}; such rollouts are not trained on",
            "name a `reward:` function in the recipe, return a number from the agent, or call"
            " lightningrl.final_reward(...)",
        )
    ]


def most_fail(found: Snapshot) -> list[Problem]:
    """Most rollouts fail."""
    ended = list(found.ended)
    failed = [record for rollout, record in ended if rollout.state is RolloutState.FAILED]
    if not failed or len(failed) <= _MOST_FAIL * len(ended):
        return []
    last = failed[0]
    why = last.attempt.failure
    message = why.message.strip().splitlines()[0] if why is not None and why.message else "unknown"
    blame = why.kind if why is not None else FailureKind.LOST
    return [
        Problem(
            "rollouts fail",
            f"{len(failed)} of the last {_count(len(ended), 'rollout')} failed, the last being"
            f" {last.rollout.id!r} ({blame.value}): {message}",
            f"lightningrl show RUN --rollout {last.rollout.id} shows what it did and the traceback",
        )
    ]


def tool_parser_off(found: Snapshot) -> list[Problem]:
    """The policy writes tool calls, and the agent gets most of them as text.

    Some unreadable ones are how a policy learns the form, so they must outnumber those that were read.
    An answer that was cut off by its token limit says nothing about the parser.
    """
    whole = [call for call in found.calls if _is_whole(call)]
    unread = [call for call in whole if _unread_tool_call(call)]
    read = [call for call in whole if _message(call).get("tool_calls")]
    if len(unread) <= len(read):
        return []
    last = unread[0]
    shown = last.error or f"it answered {_content(last)[:80]!r} and no tool call was read from it"
    return [
        Problem(
            "tool parser off",
            f"{len(unread)} of the last {_count(len(unread) + len(read), 'tool call')} were not read,"
            f" such as in step {last.step_id!r} of attempt {last.attempt_id!r}: {shown}",
            "set policies.NAME.tool_parser to the form that the model writes (or start vLLM with"
            " --enable-auto-tool-choice --tool-call-parser NAME)",
        )
    ]


CHECKS: tuple[Check, ...] = (
    no_runner,
    expired_lease,
    engine_down,
    gateway_held,
    all_rewards_equal,
    missing_reward,
    most_fail,
    tool_parser_off,
)


def diagnose(found: Snapshot, checks: Sequence[Check] = CHECKS) -> list[Problem]:
    """All problems of a run; none gives an empty list."""
    return [problem for check in checks for problem in check(found)]


def _lacks_reward(rollout: Rollout, record: AttemptRecord) -> bool:
    if rollout.reward is not None:
        return False
    failure = record.attempt.failure
    return rollout.state is RolloutState.SUCCEEDED or (
        failure is not None and failure.kind is FailureKind.NO_REWARD
    )


def _is_whole(call: CallEvent) -> bool:
    delivered = call.status is CallStatus.DELIVERED and bool(call.choices)
    return delivered and call.choices[0].finish_reason != "length"


def _unread_tool_call(call: CallEvent) -> bool:
    if (call.error or "").startswith(TOOL_PARSER_ERROR):
        return True
    message = _message(call)
    offered = json.loads(call.request or b"{}").get("tools")
    return bool(
        offered and not message.get("tool_calls") and _TOOL_CALL_TEXT.search(_content(call))
    )


def _message(call: CallEvent) -> dict[str, Any]:
    return json.loads(call.choices[0].message or b"{}")


def _content(call: CallEvent) -> str:
    content = _message(call).get("content")
    return content if isinstance(content, str) else ""


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
