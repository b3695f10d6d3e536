"""Small records for tests: the fields that a test doesn't speak of have plain values."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from datetime import UTC, datetime

from msgspec.json import encode

from lightningrl.experience.transition import Transition
from lightningrl.schema import (
    AttemptId,
    CallEvent,
    CallStatus,
    Choice,
    Endpoint,
    EventId,
    LogEvent,
    Mode,
    NewRollout,
    Policy,
    RetryPolicy,
    RewardEvent,
    RolloutId,
    StepId,
    StepKind,
    group_id,
    rollout_id,
)

AT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
"""When every event of these records happened, by its writer's clock."""


def group(
    size: int = 1,
    *,
    run: str = "run",
    mode: Mode = Mode.TRAIN,
    iteration: int | None = None,
    task: str = "task",
    variant: str = "",
    timeout_seconds: float = 600.0,
    retry: RetryPolicy | None = None,
    await_rewards: tuple[str, ...] = (),
    await_seconds: float | None = None,
    resources: dict[str, int] | None = None,
) -> list[NewRollout]:
    """The `size` rollouts of one group; of iteration 1 unless told, live ones of none yet."""
    if iteration is None:
        iteration = 0 if mode is Mode.LIVE else 1
    ident = group_id(run, mode, iteration, task, variant)
    return [
        NewRollout(
            id=rollout_id(ident, member),
            run=run,
            mode=mode,
            iteration=iteration,
            task_id=task,
            group_id=ident,
            member=member,
            task={"question": task, "member": None},
            variant=variant,
            timeout_seconds=timeout_seconds,
            retry=retry or RetryPolicy(),
            await_rewards=await_rewards,
            await_seconds=await_seconds,
            resources=resources or {},
        )
        for member in range(size)
    ]


def policy(version: int = 0, name: str = "policy", run: str = "run") -> Policy:
    """A policy with every field set."""
    return Policy(
        name=name,
        run=run,
        version=version,
        endpoints=(Endpoint("http://engine/v1", "secret"),),
        trainable=False,
        replaces=("gpt-4o",),
        agents=("solver",),
        held_until=datetime(2026, 1, 2, tzinfo=UTC),
    )


def reward(
    attempt: AttemptId,
    value: float,
    *,
    name: str = "final",
    step: str | None = None,
    revision: int = 0,
    ident: str | None = None,
) -> RewardEvent:
    """A reward; its id tells its name, step and revision unless given."""
    return RewardEvent(
        id=EventId(ident or f"reward-{name}-{step}-{revision}"),
        attempt_id=attempt,
        at=AT,
        value=value,
        step_id=None if step is None else StepId(step),
        name=name,
        revision=revision,
    )


def log(attempt: AttemptId, ident: str, message: str = "") -> LogEvent:
    """A line for people."""
    return LogEvent(id=EventId(ident), attempt_id=attempt, at=AT, level="info", message=message)


def call(
    attempt: AttemptId,
    ident: str,
    *,
    prompt: Sequence[int] = (1, 2, 3),
    answer: Sequence[int] = (4, 5),
    request: bytes = b'{"messages":[]}',
    untrainable: str | None = None,
) -> CallEvent:
    """A delivered model call whose answer has log-prob -0.5 at every token."""
    choice = Choice(
        index=0,
        message=b'{"role":"assistant","content":"hello"}',
        finish_reason="stop",
        token_ids=ids(answer),
        logprobs=logprobs([-0.5] * len(answer)),
        untrainable=untrainable,
    )
    return CallEvent(
        id=EventId(ident),
        attempt_id=attempt,
        at=AT,
        step_id=StepId(f"step-{ident}"),
        agent=None,
        policy="policy",
        model="policy",
        endpoint="http://engine/v1",
        version_start=0,
        version_end=0,
        request=request,
        sampling=None,
        prompt_ids=ids(prompt),
        choices=(choice,),
        prompt_tokens=len(prompt),
        completion_tokens=len(answer),
        latency_ms=1.5,
        held_ms=0.0,
        upstream_retries=0,
        status=CallStatus.DELIVERED,
        http_status=200,
        error=None,
    )


def llm_step(
    step: str,
    prompt: Sequence[int],
    sampled: Sequence[int],
    *,
    rollout: str = "r",
    later: bool = False,
    untrainable: str | None = None,
    logprob: float = -0.5,
) -> Transition:
    """A model call as a transition; `later` says that its messages hold an earlier answer."""
    said = ("user", "assistant", "tool") if later else ("user",)
    messages = [{"role": role, "content": ""} for role in said]
    attempt = AttemptId("a")
    return Transition(
        step_id=StepId(step),
        rollout_id=RolloutId(rollout),
        attempt_id=attempt,
        kind=StepKind.LLM,
        name="m",
        agent=None,
        parent_id=None,
        started_at=AT,
        call=call(
            attempt, step, prompt=prompt, answer=sampled, request=encode({"messages": messages})
        ),
        prompt_bytes=ids(prompt),
        token_bytes=ids(sampled),
        logprob_bytes=logprobs([logprob] * len(sampled)),
        untrainable=untrainable,
    )


def tool_step(step: str, *, rollout: str = "r") -> Transition:
    """A tool's step as a transition."""
    return Transition(
        step_id=StepId(step),
        rollout_id=RolloutId(rollout),
        attempt_id=AttemptId("a"),
        kind=StepKind.TOOL,
        name="calculator",
        agent=None,
        parent_id=None,
        started_at=AT,
    )


def logprobs(values: Sequence[float]) -> bytes:
    """Log-probs as they travel: little-endian float32."""
    return struct.pack(f"<{len(values)}f", *values)


def ids(tokens: Sequence[int]) -> bytes:
    """Token ids as they travel: little-endian int32."""
    return struct.pack(f"<{len(tokens)}i", *tokens)
