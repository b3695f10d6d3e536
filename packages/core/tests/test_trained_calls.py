"""Which calls credit assigners are told to be trained."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lightningrl.errors import ConfigError, RunError
from lightningrl.experience.train_when import load_train_when
from lightningrl.experience.trainable import count_calls
from lightningrl.experience.trained_calls import (
    NOT_NOW,
    SIDE_CALL,
    STALE,
    UNTRAINED_AGENT,
    UNTRAINED_POLICY,
    as_meant,
    as_trained,
    lenses,
)
from lightningrl.experience.transition import Transition
from lightningrl.recipe import PolicyRecipe, SideCall
from lightningrl.schema import EventId, StepKind
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


def with_tools(request: Mapping[str, Any]) -> bool:
    """A rule that no key can say: a call is trained if its request has tools."""
    return bool(request.get("tools"))


def torn(request: Mapping[str, Any]) -> object:
    """Answers neither yes nor no; raises where the request has no tools."""
    return request["tools"]


def asked(request: Mapping[str, Any], call: str = "1", policy: str = "policy") -> Transition:
    made = answer(policy=policy)
    assert made.call is not None
    record = msgspec.structs.replace(
        made.call, id=EventId(call), request=msgspec.json.encode(request)
    )
    return msgspec.structs.replace(made, call=record)


def told(reference: str) -> dict[str, PolicyRecipe]:
    return {"policy": PolicyRecipe(tiny="m:f", train_when=reference)}


def test_a_function_of_the_users_says_which_calls_are_trained_and_the_others_are_no_loss() -> None:
    steps = [
        asked({"tools": [{}]}, "1"),
        asked(TITLE, "2"),
        asked(TITLE, "3", policy="of another run"),
    ]
    policies = told(f"{__name__}:with_tools")
    found = list(as_meant(steps, policies, code=True))
    assert [one.untrainable for one in found] == [None, NOT_NOW, None]
    counted = count_calls(found)
    assert (counted.lost, dict(counted.left_out)) == ({}, {NOT_NOW: 1})
    assert list(as_meant(steps, policies, code=False)) == steps  # who must not run code


def test_a_function_beside_the_recipe_is_found_and_asked_once_for_a_call(tmp_path: Path) -> None:
    code = (
        "asked = []\ndef first(request):\n    asked.append(request)\n    return len(asked) == 1\n"
    )
    (tmp_path / "rules_of_calls.py").write_text(code)
    policies = told("rules_of_calls:first")
    load_train_when(policies, tmp_path)
    given = group(replace(trace(0.0), transitions=(asked(TITLE),)))
    looks = lenses(policies)
    for _ in range(2):
        assert as_trained([given], looks)[0].traces[0].transitions[0].untrainable is None


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({}, r"policies.policy.train_when \(.*:torn\) failed at the request of call .*: KeyError"),
        ({"tools": []}, r"said \[\] of the request of call .*; it must return True"),
    ],
)
def test_a_function_that_does_not_say_ends_the_run(request_: Any, said: str) -> None:
    with pytest.raises(RunError, match=said):
        list(as_meant([asked(request_)], told(f"{__name__}:torn"), code=True))


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        (f"{__name__}:absent", "policies.policy.train_when: .* has no attribute 'absent'"),
        (f"{__name__}:TITLE", "policies.policy.train_when: .* is no function of a request"),
    ],
)
def test_a_function_that_is_not_there_is_refused(reference: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_train_when(told(reference))


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
