"""Which calls credit assigners are told to be trained."""

from dataclasses import replace

import msgspec
import pytest

from lightningrl.experience.trained_calls import (
    STALE,
    UNTRAINED_AGENT,
    UNTRAINED_POLICY,
    as_trained,
    lenses,
)
from lightningrl.experience.transition import Transition
from lightningrl.recipe import PolicyRecipe
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
