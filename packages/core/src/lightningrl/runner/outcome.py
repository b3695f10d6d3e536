"""What an agent's end means: its output, its reward, and whose fault a failure is. No I/O.

Invariant: exactly one source decides a rollout's final reward. A recipe's reward function, or the agent's
return value, or a reward that the agent emitted; two of them, none, NaN or infinity fail the attempt.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from lightningrl.capture.context import describe_error
from lightningrl.capture.jsonable import is_scalar, safe_repr, unicode_text
from lightningrl.capture.rewards import NotFinite, Reward, finite
from lightningrl.errors import AgentError, CommandFailed, NoReward
from lightningrl.runner.transport import is_by_gateway, is_in_text
from lightningrl.schema import (
    FINAL,
    CallEvent,
    CallStatus,
    Event,
    Failure,
    FailureKind,
    RewardEvent,
    StepEndEvent,
    StepKind,
    StepStartEvent,
)

_OUR_CODE = str(Path(__file__).resolve().parent.parent) + os.sep


@dataclass(frozen=True)
class ToolCall:
    """One tool call of an attempt."""

    name: str
    inputs: Any
    output: Any
    """`None` also where the call failed or was interrupted."""
    error: str | None
    agent: str | None
    """Who called it."""
    id: str | None
    """The id that the model gave the call."""


@dataclass(frozen=True)
class AttemptTrace:
    """What a reward function may look at: what the agent did, as its adapters saw it."""

    events: tuple[Event, ...]
    """Steps, rewards and logs of this attempt, in order. Calls too if the agent is a command."""

    @property
    def tool_calls(self) -> list[ToolCall]:
        """The agent's tool calls, in order of their start."""
        ends = {one.step_id: one for one in self.events if isinstance(one, StepEndEvent)}
        calls: list[ToolCall] = []
        for event in self.events:
            if isinstance(event, StepStartEvent) and event.kind is StepKind.TOOL:
                end = ends.get(event.step_id)
                calls.append(
                    ToolCall(
                        name=event.name,
                        inputs=event.inputs,
                        output=None if end is None else end.output,
                        error="interrupted" if end is None else end.error,
                        agent=event.agent,
                        id=event.tool_call_id,
                    )
                )
        return calls


def judge(
    returned: Any,
    events: Sequence[Event],
    *,
    by_recipe: bool,
    what: str,
    required: bool = True,
) -> Reward | None:
    """Decide the rollout's reward.

    Args:
        returned: what the reward function returned, or, without one, what the agent returned.
        events: the attempt's events.
        by_recipe: `returned` is the reward function's.
        what: names the attempt in errors.
        required: whether there must be a reward.

    Returns:
        What is still to be emitted. `None`: nothing, since the agent did, or since none is required.

    Raises:
        NoReward: there is no source.
        AgentError: there are two, or the value is no finite number.
    """
    emitted = [one for one in events if _is_final(one)]
    if by_recipe and isinstance(returned, Mapping):
        returned = _with_parts(cast("Mapping[Any, Any]", returned), what)
    given = _reward_in(returned, what)
    if by_recipe and given is None:
        raise NoReward(
            f"{what}: the recipe's reward function returned {_show(returned)}; it must return a finite "
            "number, lightningrl.Reward(final, steps=..., parts=...), or {'final': number, PART: number, ...}"
        )
    sources = len(emitted) + (given is not None)
    if sources == 1 or (sources == 0 and not required):
        return given
    if sources == 0:
        raise NoReward(
            f"{what} has no reward: the agent returned {_show(returned)}. Return a finite number or "
            "lightningrl.Reward(...), call lightningrl.final_reward(...), or name a `reward:` function "
            "in the recipe"
        )
    who = "the recipe's reward function" if by_recipe else "the agent's return value"
    extra = f" and {who}" if given is not None else ""
    raise AgentError(
        f"{what} has {sources} final rewards: {len(emitted)} by lightningrl.final_reward(){extra}; "
        "exactly one source may decide"
    )


def _is_final(event: Event) -> bool:
    return isinstance(event, RewardEvent) and event.step_id is None and event.name == FINAL


def _reward_in(returned: Any, what: str) -> Reward | None:
    """The reward that a return value is. `None`: it is something else."""
    try:
        if isinstance(returned, Reward):
            final: Any = returned.final
            steps: Mapping[str, Any] = returned.steps
            parts: Mapping[str, Any] = returned.parts
        elif _is_number(returned):
            final, steps, parts = returned, {}, {}
        else:
            return None
        return Reward(
            finite(final, f"{what}: the final reward"),
            {str(k): finite(v, f"{what}: the reward of step {k!r}") for k, v in steps.items()},
            _parts(parts, what),
        )
    except NotFinite as error:
        raise AgentError(str(error)) from error
    except Exception as error:  # the user's objects may raise anything when asked for a number
        raise AgentError(f"{what}: its reward can't be read: {describe_error(error)}") from error


def _with_parts(returned: Mapping[Any, Any], what: str) -> Reward:
    """The reward that a mapping is, so that a reward function needs nothing of ours."""
    if FINAL not in returned:
        raise NoReward(
            f"{what}: the recipe's reward function returned {_show(returned)}, which has no {FINAL!r}; that is"
            " the reward, and all else stands beside it"
        )
    parts = {name: value for name, value in returned.items() if name != FINAL}
    return Reward(returned[FINAL], parts=parts)


def _parts(parts: Mapping[str, Any], what: str) -> dict[str, float]:
    if FINAL in parts:
        raise AgentError(
            f"{what}: the part {FINAL!r} of its reward has the final reward's own name"
        )
    return {str(k): finite(v, f"{what}: the part {k!r} of its reward") for k, v in parts.items()}


def _is_number(value: Any) -> bool:
    """Whether it is a number, numpy's scalars and tensors without dimensions included; texts are not, though `float` reads them."""
    if isinstance(value, str | bytes | bytearray) or value is None:
        return False
    # Arrays have __float__ as well; only what has no length, or no dimension, is one number.
    return hasattr(value, "__float__") and (not hasattr(value, "__len__") or is_scalar(value))


def _show(value: Any) -> str:
    text = safe_repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def failure_of(error: BaseException, events: Iterable[Event], server_url: str) -> Failure:
    """Why an attempt failed, for an exception that left the agent.

    It is infrastructure if the last model call failed with a 5xx, or a connection to the gateway that failed, or
    an error of the gateway's, is among the exception's causes or in what a command wrote; else the reward is
    missing, or it is the agent's.
    """
    calls = [one for one in events if isinstance(one, CallEvent)]
    last = calls[-1] if calls else None
    broken = last is not None and last.status is CallStatus.FAILED and last.http_status >= 500
    hung_up = last is not None and last.status is CallStatus.CANCELLED
    if broken or any(_by_gateway(one, server_url, hung_up) for one in _causes(error)):
        kind = FailureKind.INFRASTRUCTURE
    else:
        kind = FailureKind.NO_REWARD if isinstance(error, NoReward) else FailureKind.AGENT
    return Failure(kind=kind, message=user_traceback(error))


def divergence(events: Iterable[Event]) -> Failure | None:
    """Why an attempt is no branch of its parent: its first request that was not recorded. `None`: there is none."""
    for event in events:
        if isinstance(event, CallEvent) and event.diverged is not None:
            return Failure(kind=FailureKind.DIVERGED, message=event.diverged.difference)
    return None


def _by_gateway(error: BaseException, server_url: str, hung_up: bool) -> bool:
    if isinstance(error, CommandFailed):
        return is_in_text(str(error), server_url, hung_up=hung_up)
    return is_by_gateway(error, server_url, hung_up=hung_up)


def _causes(error: BaseException) -> Iterable[BaseException]:
    """The exception, its causes and contexts, and the members of groups; each once."""
    seen: set[int] = set()
    stack = [error]
    while stack:
        one = stack.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        members: tuple[BaseException, ...] = ()
        if isinstance(one, BaseExceptionGroup):
            members = cast("BaseExceptionGroup[BaseException]", one).exceptions
        stack += [x for x in (one.__cause__, one.__context__, *members) if x is not None]


def user_traceback(error: BaseException) -> str:
    """The exception with the frames that aren't ours, the last 20 of them, as text."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(_OUR_CODE)
    ]
    lines = traceback.format_list(traceback.StackSummary.from_list(frames[-20:]))
    what = "".join(traceback.format_exception_only(error)).strip()
    return unicode_text("".join([f"{what}\n", *lines]).strip())
