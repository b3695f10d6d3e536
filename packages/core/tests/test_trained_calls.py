"""Which calls credit assigners are told to be trained."""

from dataclasses import replace

import msgspec
import pytest

from lightningrl.errors import ConfigError
from lightningrl.experience.trainable import count_calls
from lightningrl.experience.trained_calls import (
    SIDE_CALL,
    STALE,
    UNTRAINED_AGENT,
    UNTRAINED_POLICY,
    as_trained,
    lenses,
)
from lightningrl.experience.transition import Transition
from lightningrl.recipe import PolicyRecipe, SideCall
from lightningrl.schema import StepKind
from lightningrl_testkit.traces import Did, group, trace


def answer(
    agent: str = "planner",
    policy: str = "policy",
    version: int = 2,
    untrainable: str | None = None,
    within: tuple[str, ...] = (),
) -> Transition:
    """A call that `policy` answered at `version`."""
    made = trace(0, Did("x", agent=agent)).transitions[0]
    assert made.call is not None
    record = msgspec.structs.replace(made.call, policy=policy, version_start=version, within=within)
    return msgspec.structs.replace(made, call=record, untrainable=untrainable)


@pytest.mark.parametrize(
    ("one", "reason"),
    [
        (answer(), None),
        (answer(version=1), STALE),
        (answer(agent="solver"), UNTRAINED_AGENT),
        (answer(agent="solver", within=("lead", "team")), None),
        (answer(agent="solver", within=("team", "lead")), UNTRAINED_AGENT),
        (answer(agent="solver", policy="frozen"), UNTRAINED_POLICY),
        (answer(policy="of another run"), UNTRAINED_POLICY),
        (answer(agent="solver", untrainable="no log-probs"), UNTRAINED_AGENT),
        (answer(policy="frozen", untrainable="no log-probs"), UNTRAINED_POLICY),
        (answer(agent="planner", untrainable="no log-probs"), "no log-probs"),
        (trace(0, Did("x", kind=StepKind.TOOL)).transitions[0], "not a model call"),
    ],
)
def test_a_call_that_trains_no_policy_has_the_reason_and_keeps_its_tokens(
    one: Transition, reason: str | None
) -> None:
    policies = {
        "policy": PolicyRecipe(tiny="m:f", train_agents=("planner", "team/solver")),
        "frozen": PolicyRecipe(url="http://h/v1", trainable=False),
    }
    seen_by = lenses(policies, versions={"policy": 3}, max_staleness=1)
    given = group(replace(trace(0.0), transitions=(one,)))
    (found,) = as_trained([given], seen_by)[0].traces[0].transitions
    assert (found.untrainable, found.token_bytes) == (reason, one.token_bytes)
    assert given.traces[0].transitions == (one,)


TITLE: dict[str, object] = {
    "model": "small",
    "max_tokens": 32,
    "system": [{"type": "text", "text": "You help.\nWrite a short title."}],
}


@pytest.mark.parametrize(
    ("rule", "beside"),
    [
        (SideCall(model="small"), True),
        (SideCall(model="large"), False),
        (SideCall(max_tokens=32), True),
        (SideCall(max_tokens=31), False),
        (SideCall(prompt="^Write a short title"), True),
        (SideCall(prompt="^a short title"), False),
        (SideCall(model="small", max_tokens=1), False),  # all that is given must be true
    ],
)
def test_a_side_call_is_left_out_and_is_no_loss(rule: SideCall, beside: bool) -> None:
    policies = {"policy": PolicyRecipe(tiny="m:f", side_calls=(SideCall(model="other"), rule))}
    made = answer()
    assert made.call is not None
    record = msgspec.structs.replace(made.call, request=msgspec.json.encode(TITLE))
    one = msgspec.structs.replace(made, call=record)
    given = group(replace(trace(0.0), transitions=(one,)))
    (found,) = as_trained([given], lenses(policies))[0].traces[0].transitions
    assert found.untrainable == (SIDE_CALL if beside else None)
    counted = count_calls([found])
    assert (counted.lost, dict(counted.left_out)) == ({}, {SIDE_CALL: 1} if beside else {})


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (SideCall(), "side_calls.0: give at least one of"),
        (SideCall(max_tokens=0), r"side_calls.0.max_tokens: must be at least 1"),
        (SideCall(prompt="("), r"side_calls.0.prompt: '\(' is no regular expression"),
    ],
)
def test_a_side_call_that_can_not_be_told_is_refused(rule: SideCall, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        PolicyRecipe(tiny="m:f", side_calls=(rule,)).check("policy")
