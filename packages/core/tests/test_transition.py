"""`assemble` gives the RL view of an attempt from its events alone."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from lightningrl.experience.transition import Transition, assemble, final_reward, unjoined_rewards
from lightningrl.schema import (
    Attempt,
    AttemptId,
    AttemptState,
    CallEvent,
    CallStatus,
    Choice,
    Event,
    EventId,
    GroupId,
    LogEvent,
    Mode,
    NewRollout,
    RewardEvent,
    Rollout,
    RolloutId,
    RolloutState,
    StepEndEvent,
    StepId,
    StepKind,
    StepStartEvent,
)

START = datetime(2026, 1, 1, tzinfo=UTC)
ATTEMPT_ID = AttemptId("a1")
ROLLOUT = Rollout(
    spec=NewRollout(
        id=RolloutId("r1"),
        run="run",
        mode=Mode.TRAIN,
        iteration=1,
        task_id="t1",
        group_id=GroupId("g1"),
        member=0,
        task={},
    ),
    state=RolloutState.SUCCEEDED,
    attempts=1,
    reward=1.0,
    created_at=START,
    ended_at=START,
)
ATTEMPT = Attempt(
    id=ATTEMPT_ID,
    rollout_id=ROLLOUT.id,
    number=1,
    state=AttemptState.SUCCEEDED,
    worker="w",
    lease_expires_at=START,
    started_at=START,
    ended_at=START,
    failure=None,
    output=None,
)


def base(event_id: str, seconds: float) -> dict[str, Any]:
    at = START + timedelta(seconds=seconds)
    return {"id": EventId(event_id), "attempt_id": ATTEMPT_ID, "at": at}


def choice(
    tokens: list[int],
    *,
    index: int = 0,
    message: dict[str, Any] | None = None,
    untrainable: str | None = None,
) -> Choice:
    return Choice(
        index=index,
        message=json.dumps(message or {"role": "assistant", "content": "hi"}).encode(),
        finish_reason="stop",
        token_ids=np.array(tokens, "<i4").tobytes(),
        logprobs=np.full(len(tokens), -0.5, "<f4").tobytes(),
        untrainable=untrainable,
    )


def call(step: str, end_seconds: float, tokens: list[int], **changes: Any) -> CallEvent:
    """A call that ended at `end_seconds` and took one second."""
    fields: dict[str, Any] = {
        "step_id": StepId(step),
        "agent": None,
        "policy": "policy",
        "model": "gpt-x",
        "endpoint": "http://engine/v1",
        "version_start": 3,
        "version_end": 3,
        "request": b"{}",
        "sampling": None,
        "prompt_ids": np.array([1, 2], "<i4").tobytes(),
        "choices": (choice(tokens),),
        "prompt_tokens": 2,
        "completion_tokens": len(tokens),
        "latency_ms": 1000.0,
        "held_ms": 0.0,
        "upstream_retries": 0,
        "status": CallStatus.DELIVERED,
        "http_status": 200,
        "error": None,
    }
    fields |= base(f"call-{step}-{end_seconds}", end_seconds)
    return CallEvent(**(fields | changes))


def begin(
    step: str, seconds: float, kind: StepKind, parent: str | None = None, **changes: Any
) -> StepStartEvent:
    fields: dict[str, Any] = {"name": f"name of {step}", "agent": "solver"}
    fields |= base(f"start-{step}", seconds) | changes
    parent_id = StepId(parent) if parent else None
    return StepStartEvent(step_id=StepId(step), parent_id=parent_id, kind=kind, **fields)


def end(step: str, seconds: float, output: Any = None, error: str | None = None) -> StepEndEvent:
    return StepEndEvent(
        **base(f"end-{step}", seconds), step_id=StepId(step), output=output, error=error
    )


def reward(
    value: float, step: str | None = None, name: str = "r", revision: int = 0
) -> RewardEvent:
    return RewardEvent(
        **base(f"reward-{step}-{name}-{revision}", 9),
        value=value,
        step_id=StepId(step) if step else None,
        name=name,
        revision=revision,
    )


def transitions(*events: Event) -> dict[str, Transition]:
    return {one.step_id: one for one in assemble(ROLLOUT, ATTEMPT, events)}


# -- calls without an adapter -------------------------------------------------------------------


def test_no_events_give_no_transitions() -> None:
    assert assemble(ROLLOUT, ATTEMPT, []) == ()


def test_a_call_that_no_adapter_saw_is_a_trainable_transition() -> None:
    one = transitions(call("s1", 5, [7, 8, 9]))["s1"]
    assert (one.kind, one.name, one.agent, one.parent_id) == (StepKind.LLM, "gpt-x", None, None)
    assert one.started_at == START + timedelta(seconds=4)  # ended at 5, took 1
    assert one.prompt_ids.tolist() == [1, 2]
    assert one.token_ids.tolist() == [7, 8, 9]
    assert one.logprobs.tolist() == [-0.5, -0.5, -0.5]
    assert one.untrainable is None
    assert not one.interrupted


def test_the_agent_is_what_the_step_header_said_where_no_adapter_spoke() -> None:
    assert transitions(call("s1", 5, [7], agent="writer"))["s1"].agent == "writer"


def test_of_calls_that_share_a_step_the_last_delivered_one_counts() -> None:
    first = call("s1", 2, [5])
    second = call("s1", 4, [6])
    hung_up = call("s1", 6, [7], status=CallStatus.CANCELLED, http_status=499)
    one = transitions(first, second, hung_up)["s1"]
    assert one.token_ids.tolist() == [6]
    assert one.call == second


def test_a_step_whose_calls_all_failed_says_why_and_has_no_tokens() -> None:
    failed = call(
        "s1", 2, [], status=CallStatus.FAILED, http_status=502, error="engine gone", choices=()
    )
    one = transitions(failed)["s1"]
    assert one.call is None
    assert len(one.token_ids) == 0
    assert one.untrainable == "the call was failed: engine gone"
    assert one.error == "engine gone"


# -- why a call is not trained ------------------------------------------------------------------


def test_a_call_across_two_policy_versions_is_not_trained() -> None:
    one = transitions(call("s1", 2, [5], version_end=4))["s1"]
    assert one.untrainable == "sampled across policy versions 3 and 4"


def test_a_call_with_two_answers_is_not_trained() -> None:
    one = transitions(call("s1", 2, [], choices=(choice([5]), choice([6], index=1))))["s1"]
    assert one.untrainable is not None
    assert "2 answers" in one.untrainable


def two_answers(end_seconds: float = 1.0) -> CallEvent:
    left = {"role": "assistant", "content": "left"}
    right = {"role": "assistant", "content": "right"}
    answers = (choice([7], message=left), choice([8, 9], index=1, message=right))
    return call("s1", end_seconds, [], choices=answers)


def test_of_two_answers_the_one_whose_tokens_the_next_prompt_holds_is_the_action() -> None:
    then = call("s2", 3, [5], prompt_ids=np.array([1, 2, 8, 9, 3], "<i4").tobytes())
    first, _ = assemble(ROLLOUT, ATTEMPT, [two_answers(), then])
    assert (first.chosen, first.token_ids.tolist(), first.untrainable) == (1, [8, 9], None)
    assert first.choice is not None
    assert json.loads(first.choice.message)["content"] == "right"


def test_of_two_answers_the_one_in_later_messages_is_the_action_where_tokens_differ() -> None:
    """The template renders history anew, so no later prompt holds the sampled tokens."""
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "left"}]
    then = call("s2", 3, [5], request=json.dumps({"messages": messages}).encode())
    first, _ = assemble(ROLLOUT, ATTEMPT, [two_answers(), then])
    assert (first.chosen, first.token_ids.tolist(), first.untrainable) == (0, [7], None)


def test_of_two_answers_a_custom_call_that_was_sent_back_is_the_action() -> None:
    """The engine made function calls of what the agent knows as custom calls."""
    answers = [
        choice(
            [7 + index],
            index=index,
            message={
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "c", "function": {"name": "shell", "arguments": f'{{"input":"{text}"}}'}}
                ],
            },
        )
        for index, text in enumerate(("pwd", "ls"))
    ]
    custom = {"id": "c", "type": "custom", "custom": {"name": "shell", "input": "ls"}}
    messages = [{"role": "assistant", "content": None, "tool_calls": [custom]}]
    then = call("s2", 3, [5], request=json.dumps({"messages": messages}).encode())
    first, _ = assemble(ROLLOUT, ATTEMPT, [call("s1", 1, [], choices=tuple(answers)), then])
    assert (first.chosen, first.untrainable) == (1, None)


def test_two_answers_that_are_both_gone_on_with_are_not_trained() -> None:
    left = call("s2", 3, [5], prompt_ids=np.array([1, 2, 7, 3], "<i4").tobytes())
    right = call("s3", 5, [5], prompt_ids=np.array([1, 2, 8, 9, 3], "<i4").tobytes())
    first, *_ = assemble(ROLLOUT, ATTEMPT, [two_answers(), left, right])
    assert first.untrainable == "asked for 2 answers; which one the agent went on with is unknown"


def test_a_call_whose_prompt_ids_are_unknown_is_not_trained() -> None:
    one = transitions(call("s1", 2, [5], prompt_ids=b""))["s1"]
    assert one.untrainable == "the engine gave no prompt token ids"


def test_a_call_with_fewer_log_probs_than_tokens_is_not_trained() -> None:
    two = choice([5, 6])
    short = Choice(
        index=0,
        message=two.message,
        finish_reason="stop",
        token_ids=two.token_ids,
        logprobs=two.logprobs[:4],
    )
    one = transitions(call("s1", 2, [], choices=(short,)))["s1"]
    assert one.untrainable == "the engine gave 2 token ids and 1 log-probs"


def test_the_gateways_own_reason_is_kept() -> None:
    one = transitions(call("s1", 2, [], choices=(choice([5], untrainable="a grammar"),)))["s1"]
    assert one.untrainable == "a grammar"


# -- steps of an adapter ------------------------------------------------------------------------


def test_a_tool_step_has_its_inputs_its_output_and_its_parent() -> None:
    seen = transitions(
        begin("agent", 0, StepKind.AGENT),
        begin("tool", 1, StepKind.TOOL, "agent", inputs={"x": 2}),
        end("tool", 2, output=4),
        end("agent", 3),
    )
    tool = seen["tool"]
    assert (tool.kind, tool.parent_id, tool.agent) == (StepKind.TOOL, "agent", "solver")
    assert (tool.inputs, tool.output, tool.error) == ({"x": 2}, 4, None)
    assert tool.untrainable == "not a model call"


def test_a_tools_exception_is_its_error() -> None:
    seen = transitions(
        begin("tool", 1, StepKind.TOOL), end("tool", 2, error="ZeroDivisionError: by zero")
    )
    assert seen["tool"].error == "ZeroDivisionError: by zero"


def test_a_step_that_never_ended_was_interrupted() -> None:
    assert transitions(begin("tool", 1, StepKind.TOOL))["tool"].interrupted


def test_a_model_step_without_a_call_never_reached_the_gateway() -> None:
    one = transitions(begin("s1", 1, StepKind.LLM), end("s1", 2))["s1"]
    assert one.kind is StepKind.LLM
    assert one.untrainable == "no call of this step reached the gateway"


def test_what_the_adapter_said_of_a_call_goes_before_the_header() -> None:
    one = transitions(
        begin("s1", 1, StepKind.LLM, "agent"), call("s1", 3, [5], agent="header"), end("s1", 3)
    )["s1"]
    assert (one.agent, one.name, one.parent_id) == ("solver", "name of s1", "agent")
    assert one.started_at == START + timedelta(seconds=1)
    assert one.token_ids.tolist() == [5]


def test_transitions_stand_in_order_of_their_start_not_of_their_end() -> None:
    events = [call("late", 9, [1]), call("slow", 8, [1], latency_ms=7000.0), call("mid", 4, [1])]
    # starts: late 9-1=8, slow 8-7=1, mid 4-1=3
    assert [one.step_id for one in assemble(ROLLOUT, ATTEMPT, events)] == ["slow", "mid", "late"]


def test_steps_that_start_together_stand_in_order_of_arrival() -> None:
    events = [begin("b", 1, StepKind.TOOL), begin("a", 1, StepKind.TOOL)]
    assert [one.step_id for one in assemble(ROLLOUT, ATTEMPT, events)] == ["b", "a"]


def test_appending_a_start_twice_changes_nothing() -> None:
    once = [begin("tool", 1, StepKind.TOOL), end("tool", 2, output=4)]
    again = transitions(*once, *once)["tool"]
    assert (again.output, again.started_at) == (4, START + timedelta(seconds=1))


def test_lines_for_people_and_ends_without_a_start_are_no_transitions() -> None:
    line = LogEvent(**base("log", 1), level="info", message="hello")
    assert transitions(line, end("ghost", 2)) == {}


# -- rewards ------------------------------------------------------------------------------------


def test_a_step_without_a_reward_has_none_rather_than_zero() -> None:
    assert transitions(call("s1", 2, [5]))["s1"].reward is None


def test_rewards_of_different_names_add_up() -> None:
    seen = transitions(call("s1", 2, [5]), reward(0.5, "s1", "style"), reward(0.25, "s1", "facts"))
    assert seen["s1"].reward == 0.75  # 0.5 + 0.25


def test_of_rewards_of_one_name_the_highest_revision_counts() -> None:
    seen = transitions(
        call("s1", 2, [5]), reward(0.9, "s1", revision=1), reward(0.1, "s1", revision=0)
    )
    assert seen["s1"].reward == 0.9


def test_a_tools_reward_counts_for_the_call_that_asked_for_it() -> None:
    asks = {"role": "assistant", "tool_calls": [{"id": "c1"}, {"id": "c2"}]}
    seen = transitions(
        call("s1", 2, [], choices=(choice([5], message=asks),)),
        call("s2", 4, [6]),
        begin("t1", 3, StepKind.TOOL, tool_call_id="c1"),
        begin("t2", 3, StepKind.TOOL, tool_call_id="c2"),
        reward(1.0, "t1"),
        reward(-0.25, "t2"),
    )
    assert seen["s1"].reward == 0.75  # 1 - 0.25: it asked for both
    assert seen["s2"].reward is None
    assert (seen["t1"].reward, seen["t2"].reward) == (1.0, -0.25)


def test_without_a_tool_call_id_the_nearest_model_ancestor_gets_a_tools_reward() -> None:
    seen = transitions(
        begin("s1", 0, StepKind.LLM),
        call("s1", 1, [5]),
        begin("agent", 2, StepKind.AGENT, "s1"),
        begin("tool", 3, StepKind.TOOL, "agent"),
        reward(1.0, "tool"),
    )
    assert seen["s1"].reward == 1.0
    assert seen["agent"].reward is None


def test_a_circle_of_parents_gives_nobody_the_reward() -> None:
    seen = transitions(
        begin("a", 0, StepKind.AGENT, "b"),
        begin("b", 0, StepKind.AGENT, "a"),
        begin("tool", 1, StepKind.TOOL, "a"),
        reward(1.0, "tool"),
    )
    assert (seen["a"].reward, seen["b"].reward, seen["tool"].reward) == (None, None, 1.0)


def test_tool_call_ids_that_repeat_each_turn_join_the_tool_to_the_call_before_it() -> None:
    asks = {"role": "assistant", "tool_calls": [{"id": "call_0"}]}
    seen = transitions(
        call("s1", 2, [], choices=(choice([5], message=asks),)),
        begin("t1", 3, StepKind.TOOL, tool_call_id="call_0"),
        reward(1.0, "t1"),
        call("s2", 5, [], choices=(choice([6], message=asks),)),
        begin("t2", 6, StepKind.TOOL, tool_call_id="call_0"),
    )
    assert (seen["s1"].reward, seen["s2"].reward) == (1.0, None)


def test_the_final_reward_is_the_one_of_the_highest_revision() -> None:
    events = [
        reward(0.1, name="final", revision=0),
        reward(0.3, name="final", revision=2),
        reward(0.2, name="final", revision=1),
        reward(9.0, name="helpful", revision=5),  # not *the* reward of the rollout
        reward(8.0, step="s1", name="final", revision=7),  # of a step
    ]
    found = final_reward(events)
    assert found is not None
    assert found.value == 0.3


def test_without_a_final_reward_there_is_none() -> None:
    assert final_reward([reward(9.0, name="helpful")]) is None


def test_a_reward_for_a_step_that_nobody_mentioned_is_listed() -> None:
    lost = reward(1.0, "ghost")
    assert unjoined_rewards([call("s1", 2, [5]), reward(0.5, "s1"), lost, reward(1.0)]) == [lost]
