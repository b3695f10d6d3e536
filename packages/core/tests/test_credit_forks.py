"""Credit by forks: on an example for a pencil, against a plain reference, and what must not change it.

EX: a group of two, A with reward 1 and B with 0; its mean is 1/2. A made four calls. It was forked at its second call,
whose branches got 1, 0, 0 (mean 1/3), and at its fourth one, whose branches got 1, 1, 0 (mean 2/3).

| A's call | before | after | `vine` | `leave_one_out_fork` |
|---|---|---|---|---|
| 1 | 1/2 | 1/3 | -1/6 | 1/2 (broadcast) |
| 2, 3 | 1/3 | 2/3 | 1/3 | 2/3 |
| 4 | 2/3 | 1 | 1/3 | 1/3 |

A branch is compared with its siblings: of 1, 0, 0 the first has 1 - 0, the others 0 - 1/2.
"""

import math
import os
from collections.abc import Sequence
from random import Random
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightningrl.credit import assign, find_assigner
from lightningrl.credit.fork_points import Points, Steps, choose, find_rule
from lightningrl.errors import ConfigError, RunError
from lightningrl.experience.forks import rollout_weights, unforked
from lightningrl.experience.transition import Group, Trace
from lightningrl_testkit.traces import Did, branch, group, trace

METHODS = ("vine", "leave_one_out_fork")
EXAMPLES = min(int(os.environ.get("LIGHTNINGRL_EXAMPLES", "12")), 100)
FEW = settings(max_examples=EXAMPLES, deadline=None)


class Point(NamedTuple):
    """A fork point of a random group."""

    member: int
    at: int
    rewards: tuple[float, ...]


def forked(
    rewards: Sequence[float], lengths: Sequence[int], points: Sequence[Point]
) -> list[Group]:
    """A group of members, and a group of branches for each point."""
    members = [
        trace(reward, *[Did("s")] * length, member=m, attempt_id=f"m{m}")
        for m, (reward, length) in enumerate(zip(rewards, lengths, strict=True))
    ]
    return [group(*members), *(branches(members[one.member], one) for one in points)]


def branches(parent: Trace, point: Point) -> Group:
    left = len(parent.transitions) - point.at
    made = [
        branch(parent, point.at, reward, *[Did("s")] * left, number=number)
        for number, reward in enumerate(point.rewards)
    ]
    return group(*made, name=f"g/fork/{point}")


EX = ((1.0, 0.0), (4, 1), [Point(0, 1, (1.0, 0.0, 0.0)), Point(0, 3, (1.0, 1.0, 0.0))])


def credit(name: str, groups: Sequence[Group], **params: Any) -> list[list[list[float]]]:
    assigner: Any = find_assigner(name, params)
    return list(assign(assigner, groups, params))


def test_vine_is_the_difference_of_neighbouring_values() -> None:
    members, early, late = credit("vine", forked(*EX))
    assert members[0] == pytest.approx([-1 / 6, 1 / 3, 1 / 3, 1 / 3])
    assert members[1] == [-0.5]
    # One replayed call, then three of its own; three replayed, then one.
    assert early == [[0, 1, 1, 1], [0, -0.5, -0.5, -0.5], [0, -0.5, -0.5, -0.5]]
    assert late == [[0, 0, 0, 0.5], [0, 0, 0, 0.5], [0, 0, 0, -1]]


def test_leave_one_out_compares_with_the_last_state_that_was_forked() -> None:
    groups = forked(*EX)
    members, early, late = credit("leave_one_out_fork", groups)
    assert members[0] == pytest.approx([1 / 2, 2 / 3, 2 / 3, 1 / 3])
    assert members[1] == [-0.5]
    assert [early, late] == credit("vine", groups)[1:]


def test_std_divides_by_the_members_deviation_alone() -> None:
    # Rewards 1 and 0 deviate by sqrt(1/2), whatever the branches got.
    (members, *_), (plain, *_) = (
        credit("vine", forked(*EX), normalise=form) for form in ("std", "mean")
    )
    assert members[0] == pytest.approx([one * math.sqrt(2) for one in plain[0]], rel=1e-5)


def test_equal_members_learn_from_the_states_on_their_way() -> None:
    groups = forked((1.0, 1.0), (2, 2), [Point(0, 1, (0.0, 0.0))])
    for form in ("mean", "std"):
        # The first call lowered the value from 1 to 0, the second raised it to 1 again.
        assert credit("vine", groups, normalise=form)[0] == [[-1.0, 1.0], [0.0, 0.0]]


def test_a_lonely_branch_gets_nothing() -> None:
    assert credit("vine", forked((1.0, 0.0), (2, 1), [Point(0, 1, (1.0,))]))[1] == [[0.0, 0.0]]


def test_a_branch_without_its_parent_is_compared_with_its_siblings() -> None:
    _, early, _ = forked(*EX)
    assert credit("vine", [early], normalise="std") == [credit("vine", forked(*EX))[1]]


@pytest.mark.parametrize("name", METHODS)
def test_a_form_that_has_no_group_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"normalise: no such value 'max_rl'"):
        find_assigner(name, {"normalise": "max_rl"})


def test_step_rewards_do_not_suit_and_neither_do_rollouts_without_branches() -> None:
    assigner: Any = find_assigner("vine", {})
    groups = forked(*EX)
    assert assigner(groups).unfit is None
    with_steps = group(trace(1.0, Did("s", reward=0.5), attempt_id="x"), trace(0.0, Did("s")))
    assert "steps have rewards" in assigner([*groups, with_steps]).unfit
    assert "no rollout has a branch" in assigner(groups[:1]).unfit
    assert assigner([]).unfit is None


def test_a_rule_is_a_function() -> None:
    with pytest.raises(
        ConfigError, match=r"algorithm.forks.at: 'math:pi' is float; name a function"
    ):
        find_rule("math:pi")
    with pytest.raises(ConfigError, match=r"has no attribute 'pie'.*Did you mean 'pi'"):
        find_rule("math:pie")


def test_a_task_weighs_the_same_with_its_branches() -> None:
    """Two members and six branches of theirs weigh 2/8 each; the two of a group without branches 1."""
    groups = [
        *forked(*EX),
        group(trace(1.0, Did("s"), attempt_id="x"), trace(0.0, Did("s"), attempt_id="y")),
    ]
    assert rollout_weights(groups) == [[0.25] * 2, [0.25] * 3, [0.25] * 3, [1.0] * 2]
    assert unforked(groups) == [groups[0], groups[3]]
    # A branch whose parents were not taken has no weight to share.
    assert rollout_weights(groups[1:2]) == [[0.0] * 3]


# -- against a reference ----------------------------------------------------------------------------


def reference(
    name: str, rewards: Sequence[float], lengths: Sequence[int], points: Sequence[Point]
) -> Any:
    """By loops, from the table of the method's file."""
    mean = math.fsum(rewards) / len(rewards)
    found: list[list[list[float]]] = [[]]
    for m, (reward, length) in enumerate(zip(rewards, lengths, strict=True)):
        own = sorted(
            (one.at, math.fsum(one.rewards) / len(one.rewards)) for one in points if one.member == m
        )
        row: list[float] = []
        for t in range(length):
            before = [value for at, value in own if at <= t]
            after = [value for at, value in own if at > t]
            behind = after[0] if after and name == "vine" else reward
            row.append(behind - (before[-1] if before else mean))
        found[0].append(row)
    for one in points:
        of_point: list[list[float]] = []
        for number, reward in enumerate(one.rewards):
            others = [*one.rewards[:number], *one.rewards[number + 1 :]]
            value = reward - math.fsum(others) / len(others) if others else 0.0
            of_point.append([0.0] * one.at + [value] * (lengths[one.member] - one.at))
        found.append(of_point)
    return found


REWARDS = st.sampled_from([0.0, 0.25, 1.0, -1.0])


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[float], list[int], list[Point]]:
    lengths = draw(st.lists(st.integers(2, 5), min_size=2, max_size=4))
    places = [(m, at) for m, length in enumerate(lengths) for at in range(1, length)]
    chosen = draw(st.lists(st.sampled_from(places), unique=True, max_size=4))
    of_point = st.lists(REWARDS, min_size=1, max_size=4).map(tuple)
    return (
        [draw(REWARDS) for _ in lengths],
        lengths,
        [Point(m, at, draw(of_point)) for m, at in chosen],
    )


def close(found: Any, expected: Any) -> None:
    for one, wanted in zip(found, expected, strict=True):
        for row, values in zip(one, wanted, strict=True):
            assert row == pytest.approx(values, abs=1e-9)


@pytest.mark.parametrize("name", METHODS)
@FEW
@given(case=cases())
def test_a_method_gives_what_its_formula_gives(name: str, case: Any) -> None:
    close(credit(name, forked(*case)), reference(name, *case))


@pytest.mark.parametrize("form", ["mean", "std", "leave_one_out"])
@pytest.mark.parametrize("name", METHODS)
@FEW
@given(case=cases())
def test_without_forks_it_is_the_broadcast(name: str, form: str, case: Any) -> None:
    rewards, lengths, points = case
    plain = forked(rewards, lengths, [])
    assert credit(name, plain, normalise=form) == credit("broadcast", plain, normalise=form)
    # And a member that was not forked has it, whatever was forked beside it.
    beside = credit(name, forked(rewards, lengths, points), normalise=form)
    for m in set(range(len(lengths))) - {one.member for one in points}:
        assert beside[0][m] == credit("broadcast", plain, normalise=form)[0][m]


@FEW
@given(case=cases())
def test_vine_sums_to_the_rollouts_own_advantage(case: Any) -> None:
    """Of a member: one decision of each stretch between fork points, whose values cancel."""
    rewards, lengths, points = case
    found = credit("vine", forked(*case))[0]
    mean = math.fsum(rewards) / len(rewards)
    for m in range(len(lengths)):
        starts = {0, *(one.at for one in points if one.member == m)}
        assert sum(found[m][t] for t in starts) == pytest.approx(rewards[m] - mean)


@pytest.mark.parametrize("name", METHODS)
@FEW
@given(case=cases(), shuffled=st.randoms(use_true_random=False))
def test_the_order_of_groups_changes_nothing(name: str, case: Any, shuffled: Random) -> None:
    groups = forked(*case)
    order = list(range(len(groups)))
    shuffled.shuffle(order)
    found, straight = credit(name, [groups[i] for i in order]), credit(name, groups)
    close(found, [straight[i] for i in order])


# -- where rollouts are forked ----------------------------------------------------------------------

STEPS: Any = [
    trace(0.0, *[Did("s")] * length).transitions for length in (3, 0, 2)
]  # of three members, one of which has no step that may be forked
GROUP = group(*(trace(0.0, Did("s")) for _ in STEPS))


def places(at: str, count: int, seed: str = "0") -> Points:
    return choose(find_rule(at), at, GROUP, STEPS, count, seed)


@pytest.mark.parametrize("at", ["spread", "first", "random", "entropy"])
def test_a_rule_chooses_the_same_again_and_each_step_once(at: str) -> None:
    for count in range(1, 8):
        for seed in "0123":
            found = places(at, count, seed)
            assert found == places(at, count, seed)
            assert len(set(found)) == len(found) <= min(count, 5)
            assert all(place < len(STEPS[member]) for member, place in found)
    assert choose(find_rule(at), at, GROUP, [[], []], 2, "0") == []


def test_first_takes_the_earliest_steps_of_each() -> None:
    assert sorted(places("first", 2)) == [(0, 0), (2, 0)]
    assert sorted(places("first", 5)) == [(0, 0), (0, 1), (0, 2), (2, 0), (2, 1)]


def test_spread_reaches_every_part_of_a_rollout_in_time() -> None:
    found = {one for seed in range(40) for one in places("spread", 2, str(seed))}
    assert found == {(0, 0), (0, 1), (0, 2), (2, 0), (2, 1)}


def even(_group: Group, steps: Steps, count: int, _random: Random) -> Points:
    return [(0, len(steps[0]) + count)]


def test_a_users_rule_that_names_no_step_is_refused() -> None:
    with pytest.raises(RunError, match=r"'mine:even' answered \[\(0, 5\)\] for group 'g'"):
        choose(even, "mine:even", GROUP, STEPS, 2, "0")
