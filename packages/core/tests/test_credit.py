"""Credit assigners: what `broadcast` gives, how one is found by name, and what is refused."""

import math
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from lightningrl.credit import CreditAssigner, assign, broadcast, find_assigner
from lightningrl.errors import ConfigError, RunError
from lightningrl.schema import (
    Attempt,
    AttemptId,
    AttemptState,
    GroupId,
    Mode,
    NewRollout,
    Rollout,
    RolloutId,
    RolloutState,
    StepId,
    StepKind,
)
from lightningrl.transition import Group, Trace, Transition

START = datetime(2026, 1, 1, tzinfo=UTC)


def trace(reward: float, transitions: int) -> Trace:
    spec = NewRollout(
        id=RolloutId("r"),
        run="run",
        mode=Mode.TRAIN,
        iteration=1,
        task_id="t",
        group_id=GroupId("g"),
        member=0,
        task={},
    )
    return Trace(
        rollout=Rollout(spec, RolloutState.SUCCEEDED, 1, reward, START, START),
        attempt=Attempt(
            id=AttemptId("a"),
            rollout_id=spec.id,
            number=1,
            state=AttemptState.SUCCEEDED,
            worker="w",
            lease_expires_at=START,
            started_at=START,
            ended_at=START,
            failure=None,
            output=None,
        ),
        transitions=tuple(
            Transition(
                step_id=StepId(f"s{index}"),
                rollout_id=spec.id,
                attempt_id=AttemptId("a"),
                kind=StepKind.LLM,
                name="m",
                agent=None,
                parent_id=None,
                started_at=START,
            )
            for index in range(transitions)
        ),
        reward=reward,
    )


def group(*traces: Trace) -> Group:
    return Group(GroupId("g"), traces)


# -- broadcast ----------------------------------------------------------------------------------


def test_every_transition_gets_its_rollouts_advantage() -> None:
    # rewards 1, 0, 0, 1: mean 0.5, sample deviation sqrt(4 * 0.25 / 3) = 0.57735
    # (1 - 0.5) / 0.57735 = 0.86603, less a millionth for the epsilon
    (credit,) = broadcast([group(trace(1, 2), trace(0, 1), trace(0, 3), trace(1, 0))])
    high = 0.5 / (math.sqrt(1 / 3) + 1e-6)
    assert high == pytest.approx(0.866024, abs=1e-6)
    assert credit == [[high] * 2, [-high], [-high] * 3, []]


def test_by_mean_the_deviation_is_left_out() -> None:
    (credit,) = broadcast([group(trace(1, 1), trace(0, 1))], normalise="mean")
    assert credit == [[0.5], [-0.5]]


def test_mean_and_deviation_are_over_rollouts_not_over_transitions() -> None:
    (few,) = broadcast([group(trace(1, 1), trace(0, 1))])
    (many,) = broadcast([group(trace(1, 9), trace(0, 1))])
    assert few[0][0] == many[0][0]


def test_groups_do_not_touch_each_other() -> None:
    low, high = group(trace(0, 1), trace(1, 1)), group(trace(10, 1), trace(11, 1))
    both = broadcast([low, high])
    assert both[0] == both[1]  # equal but for an offset that the mean takes away


@pytest.mark.parametrize("normalise", ["std", "mean"])
def test_a_group_of_one_and_one_of_equal_rewards_teach_nothing(normalise: str) -> None:
    credit = broadcast(
        [group(trace(0.7, 2)), group(trace(0.1, 1), trace(0.1, 1), trace(0.1, 1))],
        normalise=normalise,  # type: ignore[arg-type]  # a str on purpose
    )
    assert credit == [[[0.0, 0.0]], [[0.0], [0.0], [0.0]]]


def test_no_group_and_an_empty_group_give_empty_lists() -> None:
    assert broadcast([]) == []
    assert broadcast([group()]) == [[]]


def test_an_unknown_normalisation_is_refused() -> None:
    with pytest.raises(ValueError, match="not 'max'"):
        broadcast([], normalise="max")  # type: ignore[arg-type]  # wrong on purpose


# -- finding one --------------------------------------------------------------------------------


def test_a_shipped_method_is_found_by_its_name() -> None:
    assert find_assigner("broadcast", {"normalise": "mean"}) is broadcast


def test_any_function_is_found_by_its_module_beside_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.path", [*sys.path])  # finding it puts the folder there
    (tmp_path / "my_credit_of_this_test.py").write_text(
        "def zero(groups):\n    return [[[0.0] * len(t.transitions) for t in g.traces] for g in groups]\n"
    )
    assigner = find_assigner("my_credit_of_this_test:zero", {}, folder=tmp_path)
    assert assign(assigner, [group(trace(1, 2))], {}) == [[[0.0, 0.0]]]


def test_a_name_nearly_right_gets_the_right_one_suggested() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'broadcast'"):
        find_assigner("brodcast", {})


def test_a_parameter_nearly_right_gets_the_right_one_suggested() -> None:
    with pytest.raises(ConfigError, match=r"takes no 'normalize'.*Did you mean 'normalise'"):
        find_assigner("broadcast", {"normalize": "std"})


# -- checking what one returns ------------------------------------------------------------------


def constant(credit: list[list[list[float]]]) -> CreditAssigner:
    def assigner(groups: Sequence[Group]) -> list[list[list[float]]]:
        return credit

    return assigner


@pytest.mark.parametrize(
    ("credit", "complaint"),
    [
        ([], "0 results for 1 groups"),
        ([[[1.0]]], r"transitions \[2\], the credit \[1\]"),
        ([[[1.0, math.nan]]], "NaN or infinity"),
        ([[[1.0, math.inf]]], "NaN or infinity"),
    ],
)
def test_credit_that_does_not_fit_stops_the_run(
    credit: list[list[list[float]]], complaint: str
) -> None:
    with pytest.raises(RunError, match=complaint):
        assign(constant(credit), [group(trace(1, 2))], {})


def test_the_complaint_names_the_assigner() -> None:
    with pytest.raises(RunError, match=r"constant\.<locals>\.assigner"):
        assign(constant([]), [group(trace(1, 2))], {})
