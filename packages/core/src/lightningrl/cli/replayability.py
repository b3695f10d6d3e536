"""How far attempts that were answered from a record alone went as recorded, and what made the others differ. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from lightningrl.checks.evidence import counted
from lightningrl.schema import AttemptState, CallEvent, CallStatus
from lightningrl.traces import AttemptRecord

_SHOWN = 10


class Replay(NamedTuple):
    """One rollout and its replay."""

    parent: AttemptRecord
    again: AttemptRecord

    @property
    def diverged(self) -> CallEvent | None:
        """The first call that was not what was recorded. `None`: there is none."""
        return next((one for one in calls_of(self.again) if one.diverged is not None), None)

    @property
    def unasked(self) -> int:
        """Recorded calls that were not asked for again."""
        steps = {one.step_id for one in calls_of(self.parent) if _is_delivered(one)}
        origins = {one.replay_of for one in calls_of(self.again) if one.replay_of is not None}
        return len(steps) - len(origins)

    @property
    def why(self) -> str | None:
        """Why it is not exact, in a word or two. `None`: it is."""
        call = self.diverged
        if call is not None and call.diverged is not None:
            of = (
                ""
                if call.diverged.tool is None
                else f", in the output of tool {call.diverged.tool!r}"
            )
            return f"{call.diverged.cause.value}{of}"
        if self.again.attempt.state is not AttemptState.SUCCEEDED:
            return "it failed"
        return "it ended early" if self.unasked else None


def calls_of(record: AttemptRecord) -> list[CallEvent]:
    """An attempt's calls in order of arrival."""
    return [one for one in record.events if isinstance(one, CallEvent)]


def _is_delivered(call: CallEvent) -> bool:
    return call.status is CallStatus.DELIVERED


def report(replays: Sequence[Replay]) -> list[str]:
    """What a person is told, in lines; of at least one replay."""
    reasons = [(one, why) for one in replays if (why := one.why) is not None]
    exact = len(replays) - len(reasons)
    lines = [f"{exact} of {counted(len(replays), 'rollout')} replay exactly"]
    others = sum(
        one.why is None and one.parent.rollout.reward != one.again.rollout.reward for one in replays
    )
    if others:
        lines.append(
            f"{others} of them got another reward: the reward looks at more than the answers"
        )
    counts = Counter(why for _, why in reasons)
    for why, count in counts.most_common():
        lines.append(f"{count} x {why}")
    for one, _ in reasons[:_SHOWN]:
        lines.append(f"  {one.parent.rollout.id}: {_detail(one)}")
    if len(reasons) > _SHOWN:
        lines.append(f"  and {len(reasons) - _SHOWN} more")
    return lines


def _detail(one: Replay) -> str:
    call, failure = one.diverged, one.again.attempt.failure
    if call is not None and call.diverged is not None:
        number = calls_of(one.again).index(call) + 1
        return f"call {number}: {call.diverged.difference}"
    if failure is not None:
        return failure.message.splitlines()[0]
    return f"{one.unasked} recorded calls were not asked for"
