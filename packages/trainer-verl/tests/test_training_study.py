"""What credit sees of calls that nobody trains: no value, no tokens, and no part in a batch's statistics."""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from lightningrl.credit import find_assigner
from lightningrl.errors import RunError
from lightningrl.experience.trajectory import Row
from lightningrl.experience.transition import Group, Trace
from lightningrl.recipe import parse_recipe
from lightningrl.scoring import Scorer
from lightningrl_testkit.records import ids
from lightningrl_testkit.traces import Did, group, trace
from lightningrl_verl.training.lessons import NO_SIGNAL, NO_UPDATE, lesson_calls
from lightningrl_verl.training.study import Credited, Study, Trainee
from lightningrl_verl.worker.learner import Learner, Updated

PLANNER, SOLVER = Did("p", agent="planner"), Did("s", agent="solver", tokens=9)


class Critic(Learner):
    """A learner whose critic values every call alike."""

    def __init__(self, value: float, algorithm: Any) -> None:
        super().__init__(ThreadPoolExecutor(1), algorithm)
        self._value = value

    async def values(self, rows: Sequence[Row]) -> list[list[float]]:
        return [[self._value] * len(row.spans) for row in rows]


def sampled(one: Trace) -> Trace:
    """The trace with prompts that begin anew each time, and log-probs."""
    return replace(
        one,
        transitions=tuple(
            msgspec.structs.replace(
                step,
                prompt_bytes=ids([1, 2, 100 + turn]),
                logprob_bytes=np.zeros(len(step.token_ids), "<f4").tobytes(),
            )
            for turn, step in enumerate(one.transitions)
        ),
    )


async def study(
    groups: Sequence[Group], value: float = 1.0, *, first: bool = False, **algorithm: Any
) -> Credited:
    """Credit where the planner's calls alone are trained."""
    alias = groups[0].traces[0].transitions[0].call.policy  # type: ignore[union-attr]  # it is a call
    sizes = {"iterations": 1, "tasks_per_iteration": 1, "group_size": 2}
    recipe = parse_recipe(
        {
            "name": "demo",
            "agent": "m:f",
            "policies": {alias: {"tiny": "m:f", "train_agents": ["planner"]}},
            "algorithm": {**sizes, **algorithm},
            "critic": {} if algorithm["credit"] == "gae" else None,
            "optimiser": {"learning_rate": 0.1},
        }
    )
    assert recipe.algorithm is not None
    assigner = find_assigner(recipe.algorithm.credit, recipe.algorithm.credit_args)
    trainee = Trainee(alias, Critic(value, recipe.algorithm), None, 0)  # type: ignore[arg-type]  # nothing is served
    made = [replace(one, traces=tuple(sampled(trace) for trace in one.traces)) for one in groups]
    return await Study(recipe, assigner, [trainee], Scorer((), run_folder=Path())).credit(
        made, {}, first=first
    )


async def test_a_perfect_critic_teaches_nothing_where_another_agent_is_not_trained() -> None:
    # Each rollout earns the 1 that its critic expects.
    member = trace(1.0, PLANNER, SOLVER, PLANNER, SOLVER)
    found = await study([group(member, member)], credit="gae", credit_args={"whiten": False})
    assert found.values is not None
    assert found.targets is not None
    assert [math.isnan(value) for value in found.values[0][0]] == [False, True, False, True]
    assert found.targets[0][0] == [1.0, 0.0, 1.0, 0.0]
    (rows,) = found.lesson.rows.values()
    assert rows == ()


async def test_a_batch_is_whitened_over_the_tokens_that_are_trained() -> None:
    # Trained is one token of each rollout: rewards 1 and 0, mean 1/2, sample deviation 0.70711.
    groups = [group(trace(1.0, PLANNER, SOLVER), name="g1"), group(trace(0.0, PLANNER), name="g2")]
    found = await study(groups, credit="broadcast", credit_args={"normalise": "reinforce++"})
    (rows,) = found.lesson.rows.values()
    # Each rollout weighs 1/2: 0.70711 / 2.
    assert [row.advantages[-1] for row in rows] == pytest.approx([0.35355, -0.35355], abs=1e-4)


async def test_a_critic_that_diverged_stops_the_run() -> None:
    member = trace(1.0, PLANNER)
    with pytest.raises(RunError, match=r"values calls at NaN.*critic\.learning_rate"):
        await study([group(member, member)], value=math.nan, credit="gae")


async def test_what_a_method_lacks_is_refused_in_the_first_iteration_and_counted_in_later_ones() -> (
    None
):
    groups = [group(trace(1.0, PLANNER), trace(0.0, PLANNER))]
    with pytest.raises(RunError, match="step_reward: in the run's first iteration no step has a"):
        await study(groups, first=True, credit="step_reward")
    found = await study(groups, credit="step_reward")
    assert found.lesson.metrics["credit/unfit"] == 1.0
    (rows,) = found.lesson.rows.values()
    # Returns 1 and 0, mean 1/2; each rollout weighs 1/2.
    assert [row.advantages[-1] for row in rows] == [0.25, -0.25]
    fit = await study(groups, credit="broadcast", first=True)
    assert fit.lesson.metrics["credit/unfit"] == 0.0


async def test_a_lesson_has_each_call_with_its_credit_its_parts_and_both_log_probs() -> None:
    groups = [group(trace(1.0, PLANNER, SOLVER), trace(0.0, PLANNER), trace(0.0))]
    found = await study(groups, credit="broadcast", credit_args={"normalise": "mean"})
    ((alias, rows),) = found.lesson.rows.items()
    shifted = [row.logprobs - np.float32(0.25) * row.mask for row in rows]
    calls = list(lesson_calls(found, {alias: Updated({}, [], shifted)}))
    assert [(one.place, one.agent, one.reward) for one in calls] == [
        (0, "planner", 1.0), (1, "solver", 1.0), (0, "planner", 0.0)
    ]  # fmt: skip
    # Rewards 1, 0 and 0: their mean is 1/3.
    assert calls[0].credit == pytest.approx(2 / 3)
    assert calls[0].parts == {"reward": 1.0, "baseline": pytest.approx(1 / 3)}
    assert (calls[0].trained, calls[0].row, calls[0].state) == (True, 0, None)
    assert calls[0].engine_log_probs.tolist() == [0.0]
    assert calls[0].trainer_log_probs.tolist() == [-0.25]
    assert calls[1].reason == "the policy does not train this agent"
    assert (calls[1].row, calls[1].tokens, len(calls[1].engine_log_probs)) == (None, 9, 0)


async def test_a_lesson_says_why_calls_that_could_be_trained_were_not() -> None:
    same = group(trace(1.0, PLANNER), trace(1.0, PLANNER))
    found = await study([same], credit="broadcast")
    assert {one.reason for one in lesson_calls(found, {})} == {NO_SIGNAL}
    differs = group(trace(1.0, PLANNER), trace(0.0, PLANNER))
    warming = await study([differs], credit="gae")
    assert {one.reason for one in lesson_calls(warming, {})} == {NO_UPDATE}
