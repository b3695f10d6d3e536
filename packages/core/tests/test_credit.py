"""Credit assigners: what `broadcast` gives, how one is found by name, and what is refused."""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lightningrl.credit import (
    Credit,
    CreditAssigner,
    Outcome,
    State,
    StatefulAssigner,
    Values,
    assign,
    assign_with,
    broadcast,
    find_assigner,
)
from lightningrl.credit.naming import method_name, parse_method, split_methods
from lightningrl.errors import ConfigError, RunError
from lightningrl.experience.transition import Group, Trace
from lightningrl_testkit.traces import Did, group, trace


def rollout(reward: float, transitions: int) -> Trace:
    return trace(reward, *[Did("s")] * transitions)


# -- broadcast ----------------------------------------------------------------------------------


def test_every_transition_gets_its_rollouts_advantage() -> None:
    # rewards 1, 0, 0, 1: mean 0.5, sample deviation sqrt(4 * 0.25 / 3) = 0.57735
    # (1 - 0.5) / 0.57735 = 0.86603, less a millionth for the epsilon
    (credit,) = broadcast([group(rollout(1, 2), rollout(0, 1), rollout(0, 3), rollout(1, 0))])
    high = 0.5 / (math.sqrt(1 / 3) + 1e-6)
    assert high == pytest.approx(0.866024, abs=1e-6)
    assert credit == [
        [pytest.approx(one)] * n for one, n in ((high, 2), (-high, 1), (-high, 3), (high, 0))
    ]


def test_by_mean_the_deviation_is_left_out() -> None:
    (credit,) = broadcast([group(rollout(1, 1), rollout(0, 1))], normalise="mean")
    assert credit == [[0.5], [-0.5]]


def test_mean_and_deviation_are_over_rollouts_not_over_transitions() -> None:
    (few,) = broadcast([group(rollout(1, 1), rollout(0, 1))])
    (many,) = broadcast([group(rollout(1, 9), rollout(0, 1))])
    assert few[0][0] == many[0][0]


def test_groups_do_not_touch_each_other() -> None:
    low, high = group(rollout(0, 1), rollout(1, 1)), group(rollout(10, 1), rollout(11, 1))
    both = broadcast([low, high])
    assert both[0] == both[1]  # equal but for an offset that the mean takes away


@pytest.mark.parametrize("normalise", ["std", "mean"])
def test_a_group_of_one_and_one_of_equal_rewards_teach_nothing(normalise: str) -> None:
    credit = broadcast(
        [group(rollout(0.7, 2)), group(rollout(0.1, 1), rollout(0.1, 1), rollout(0.1, 1))],
        normalise=normalise,  # type: ignore[arg-type]  # a str on purpose
    )
    assert credit == [[[0.0, 0.0]], [[0.0], [0.0], [0.0]]]


def test_no_group_and_an_empty_group_give_empty_lists() -> None:
    assert broadcast([]) == []
    assert broadcast([group()]) == [[]]


def test_an_unknown_normalisation_is_refused() -> None:
    with pytest.raises(ConfigError, match="no form 'max'"):
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
    assert assign(assigner, [group(rollout(1, 2))], {}) == [[[0.0, 0.0]]]


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
        assign(constant(credit), [group(rollout(1, 2))], {})


def test_the_complaint_names_the_assigner() -> None:
    with pytest.raises(RunError, match=r"constant\.<locals>\.assigner"):
        assign(constant([]), [group(rollout(1, 2))], {})


# -- methods with a state -----------------------------------------------------------------------


class Counting(StatefulAssigner):
    def __init__(self, step: int = 1) -> None:
        self.step = step

    def initial_state(self) -> State:
        return {"seen": 0}

    def assign(
        self,
        groups: Sequence[Group],
        *,
        state: State,
        values: Values | None,
        ends: Values | None = None,
    ) -> Outcome:
        seen = state["seen"] + self.step
        shape = [[[float(seen)] * len(t.transitions) for t in g.traces] for g in groups]
        return Outcome(Credit(shape, {"seen": seen}), {"seen": seen})


def test_a_class_is_made_with_the_recipes_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "counting_of_this_test", sys.modules[__name__])
    assigner = find_assigner("counting_of_this_test:Counting", {"step": 2})
    assert isinstance(assigner, Counting)
    first = assign_with(assigner, [group(rollout(1, 1))], {}, state=assigner.initial_state())
    second = assign_with(assigner, [group(rollout(1, 1))], {}, state=first.state)
    assert (first.credit, second.credit) == ([[[2.0]]], [[[4.0]]])
    with pytest.raises(ConfigError, match=r"takes no 'stap'.*Did you mean 'step'"):
        find_assigner("counting_of_this_test:Counting", {"stap": 2})


def test_a_function_leaves_the_state_as_it_is() -> None:
    outcome = assign_with(broadcast, [group(rollout(1, 1))], {}, state={"kept": 1})
    assert (outcome.state, outcome.targets) == ({"kept": 1}, None)


def test_a_method_with_a_critic_is_refused_without_its_values() -> None:
    with pytest.raises(RunError, match="there is no critic"):
        assign_with(find_assigner("gae", {}), [group(rollout(1, 1))], {}, state={})


@pytest.mark.parametrize(
    ("name", "params", "complaint"),
    [
        ("broadcast", {"normalise": "means"}, "Did you mean 'mean'"),
        ("broadcast", {"normalise": ["std"]}, r"no such value \['std'\]"),
        (
            "discount",
            {"discount": 1.5},
            r"credit_args\.discount: Expected `float` <= 1\.0; it is 1\.5",
        ),
        ("discount", {"form": "rewards"}, "Did you mean 'reward'"),
        (
            "gae",
            {"gamma": "high"},
            r"credit_args\.gamma: Expected `float`, got `str`; it is 'high'",
        ),
        ("gae", {"lam": 7}, "<= 1.0"),
        ("gae", {"bootstrap": "no"}, "Expected `bool`"),
        ("gigpo", {"gamma": math.nan}, "gamma"),
        ("gigpo", {"weight": math.inf}, "finite number"),
        ("gigpo", {"rules": "numbers"}, "Expected `array | null`"),
        ("gigpo", {"rules": ["number"]}, "Did you mean 'numbers'"),
        ("group_td", {"gate": -0.1}, ">= 0.0"),
        ("g2po", {"gamma": 1.5}, "<= 1.0"),
        ("per_agent", {"over": "member"}, "Did you mean 'members'"),
        ("hgpo", {"history": "2"}, "Expected `int`"),
        ("hgpo", {"history": -1}, ">= 0"),
        ("mt_grpo", {"weight": -1.0}, ">= 0.0"),
        ("per_agent", {"train": "solver"}, "Expected `array | null`, got `str`"),
        ("rtmc", {"prior": -2}, ">= 0.0"),
        ("rtmc", {"normalise": "reinforce++"}, "Expected `bool`"),
        ("running_baseline", {"decay": "x"}, "Expected `float`"),
        ("running_baseline", {"decay": 1.0}, r"< 1\.0"),
        ("step_reward", {"gamma": 5}, "<= 1.0"),
    ],
)
def test_wrong_values_of_parameters_are_refused_before_any_rollout(
    name: str, params: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint) as raised:
        find_assigner(name, params)
    assert "algorithm.credit_args." in str(raised.value)


def test_whole_numbers_are_as_good_as_others() -> None:
    find_assigner("rtmc", {"prior": 3, "gamma": 1, "rules": None})
    find_assigner("running_baseline", {"decay": 0, "train": ["solver"]})


def test_metrics_of_an_assigner_come_with_its_credit() -> None:
    # one group of two has no differences, the other has
    groups = [group(rollout(1, 1), rollout(1, 1)), group(rollout(1, 1), rollout(0, 1))]
    assert assign(broadcast, groups, {}).metrics == {"groups_without_credit": 0.5}


@pytest.mark.parametrize(
    ("credit", "args", "text"),
    [
        ("broadcast", {}, "broadcast"),
        ("gigpo", {"gamma": 0.9, "normalise": "std"}, "gigpo gamma=0.9 normalise=std"),
        ("mine:credit", {"on": True, "text": "true"}, 'mine:credit on=true text="true"'),
        ("per_agent", {"train": ["a b", "c"]}, 'per_agent train=["a b","c"]'),
    ],
)
def test_a_method_in_one_line_reads_back_as_itself(
    credit: str, args: dict[str, Any], text: str
) -> None:
    assert method_name(credit, args) == text
    assert parse_method(text) == (credit, args)


def test_methods_stand_between_commas_that_are_not_in_brackets() -> None:
    found = split_methods('broadcast, per_agent train=["a,b","c"],gigpo gamma=.9,')
    assert found == ["broadcast", 'per_agent train=["a,b","c"]', "gigpo gamma=.9"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "names no credit method"),
        ("gamma=0.9", "names no credit method"),
        ("gigpo gamma", "'gamma' is not of the form key=value"),
        ("gigpo gamma=[", "is no YAML"),
    ],
)
def test_what_is_no_method_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        parse_method(text)
