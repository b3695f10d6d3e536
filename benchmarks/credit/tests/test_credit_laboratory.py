"""The laboratory measures what ships, and what it writes down can be computed with a pencil."""

import numpy as np
import pytest

from credit_laboratory.__main__ import measure, success_at, tokens_to_threshold
from credit_laboratory.batch import Episodes, decisions_of
from credit_laboratory.branches import Branches, Plan, forks_of
from credit_laboratory.methods import METHODS, Method, methods_of
from credit_laboratory.report import cell, ratio
from credit_laboratory.tasks import ENVIRONMENTS, Grid, Steps, UnmatchedGrid
from credit_laboratory.training import ROLLOUTS, Curve, Settings, _Policies, train
from lightningrl.credit import find_assigner
from lightningrl.credit.columns import read_decisions
from lightningrl.credit.fork_points import first
from lightningrl.credit.forks import read_forks
from lightningrl.credit.naming import parse_method
from lightningrl.credit.state_keys import KeyRules
from lightningrl_testkit.traces import Did, branch, group, trace

EPISODES = Episodes(
    group=np.array([0, 0, 1]),
    lived=np.array([[True, True], [True, False], [True, True]]),
    observed=np.array([[5, 6], [5, 0], [5, 7]]),
    actions=np.array([[1, 2], [0, 0], [1, 1]]),
    rewards=np.array([[0.0, 1.0], [0.5, 0.0], [0.0, 0.0]]),
    roles=np.array([0, 0]),
)


@pytest.mark.parametrize("step_rewards", [True, False])
def test_a_batch_has_the_columns_that_recorded_calls_have(step_rewards: bool) -> None:
    def did(member: int, turn: int) -> Did:
        reward = float(EPISODES.rewards[member, turn]) if step_rewards else None
        state, action = EPISODES.observed[member, turn], EPISODES.actions[member, turn]
        return Did(str(state), str(action), reward=reward)

    recorded = read_decisions(
        [
            group(trace(1.0, did(0, 0), did(0, 1)), trace(0.5, did(1, 0))),
            group(trace(0.0, did(2, 0), did(2, 1))),
        ],
        keys=KeyRules(levels=2),
    )
    batch = decisions_of(EPISODES, Steps, step_rewards=step_rewards, levels=2)
    for name in (
        "group",
        "member",
        "turn",
        "parent",
        "reward",
        "rewarded",
        "tokens",
        "final",
        "member_group",
    ):
        assert getattr(batch, name).tolist() == getattr(recorded, name).tolist(), name
    for ours, theirs in zip(
        (*batch.states, batch.action), (*recorded.states, recorded.action), strict=True
    ):
        assert ours is not None
        assert theirs is not None
        assert _partition(ours) == _partition(theirs)


def _partition(labels: np.ndarray) -> list[int]:
    """Labels renumbered by first occurrence; a missing one stays -1."""
    numbers: dict[int, int] = {}
    return [-1 if one < 0 else numbers.setdefault(int(one), len(numbers)) for one in labels]


def test_branches_stand_among_decisions_where_recorded_ones_do() -> None:
    """Two rollouts of four turns, the first forked at turns 3 and 1, the second at turn 2; two branches each."""
    points = [(0, 3), (0, 1), (1, 2)]
    members = [trace(float(m), *[Did("s")] * 4, member=m, attempt_id=f"m{m}") for m in range(2)]
    groups = [group(*members)]
    for m, at in points:
        groups.append(
            group(
                *(
                    branch(members[m], at, float(n), *[Did("s")] * (4 - at), number=n)
                    for n in range(2)
                )
            )
        )
    parent, turn = (np.repeat(one, 2) for one in np.array(points).T)
    branches = Branches(parent, turn, np.repeat(np.arange(3), 2))
    mine = forks_of(branches, np.ones((8, 4), np.bool_))
    recorded = read_forks(groups, read_decisions(groups))
    for name in ("branch", "before", "after", "replayed", "parent"):
        assert getattr(mine, name).tolist() == getattr(recorded, name).tolist(), name


def test_a_branch_repeats_its_parents_turns_and_pays_for_none_of_them() -> None:
    plan = Plan(first, group=2, per_group=1, members=3)
    policies = _Policies(Grid, [1], plan.group)
    generators = [np.random.default_rng(1)]
    chance = generators[0].random((2, Grid.turns, policies.rollouts))
    members, _ = policies.roll_out(chance)
    batch = policies.forked(plan, members, chance, generators)
    count = policies.rollouts
    # Four contexts with one fork point of three branches each, all at the second turn.
    assert len(batch.seed_of) == count + 12
    assert batch.branches is not None
    assert batch.branches.turn.tolist() == [1] * 12
    for place, parent in enumerate(batch.branches.parent.tolist(), start=count):
        assert batch.episodes.actions[place, 0] == members.actions[parent, 0]
        # After the same action in the same place the grid shows the same field.
        assert (batch.episodes.observed[place, :2] == members.observed[parent, :2]).all()
    assert not batch.sampled[count:, 0].any()
    assert (batch.sampled[count:].sum(1) == batch.episodes.lived[count:].sum(1) - 1).all()
    # Two members and three branches share a context's weight of two.
    assert batch.weight.tolist() == [0.4] * len(batch.seed_of)


def test_states_of_the_unmatched_task_never_repeat() -> None:
    assert (
        len(set(decisions_of(EPISODES, UnmatchedGrid, step_rewards=False).states[0].tolist())) == 5
    )


@pytest.mark.parametrize("method", ["gigpo", "hgpo", "group_td", "g2po", "rtmc"])
def test_where_states_never_repeat_a_method_trains_exactly_as_its_broadcast(method: str) -> None:
    control = "broadcast normalise=mean" if method == "gigpo" else "broadcast"
    settings = Settings(kl=0.1, rate=512.0)
    mine, other = (train("unmatched_grid", one, settings, [7], 5000) for one in (method, control))
    assert mine.success.tolist() == other.success.tolist()


def test_a_seeds_rollouts_do_not_depend_on_the_other_seeds() -> None:
    settings = Settings(kl=0.1, rate=512.0)
    together = train("grid", "gigpo", settings, [1, 2], 3600)
    alone = train("grid", "gigpo", settings, [2], 3600)
    updates = len(alone.success)
    assert together.success[:updates, 1].tolist() == pytest.approx(alone.success[:, 0].tolist())
    assert together.tokens[:updates, 1].tolist() == alone.tokens[:, 0].tolist()


@pytest.mark.parametrize("task", sorted(ENVIRONMENTS))
def test_every_method_that_runs_on_a_task_gives_success_rates(task: str) -> None:
    for method in methods_of(ENVIRONMENTS[task]):
        turns = ENVIRONMENTS[task].turns
        curve = train(task, method, Settings(kl=0.1, rate=512.0), [3], ROLLOUTS * turns + 1)
        assert curve.success.shape == curve.tokens.shape
        assert curve.tokens[-1, 0] > ROLLOUTS * turns >= curve.tokens[-2, 0]
        assert ((curve.success >= 0) & (curve.success <= 1)).all()


@pytest.mark.parametrize("method", METHODS, ids=lambda one: one.name)
def test_a_method_is_named_as_a_recipe_names_it(method: Method) -> None:
    assert parse_method(method.name) == (method.credit, dict(method.args))
    find_assigner(method.credit, method.args)


def test_the_grid_pays_for_arriving_and_then_ends() -> None:
    """Context 2's goal is (1, 7): one move down, seven to the right, at the eighth turn."""
    walk = Grid(np.array([2]))
    moves = [0, 2, 2, 2, 2, 2, 2, 2]
    paid = [walk.act(turn, np.array([move]), np.zeros(1)) for turn, move in enumerate(moves)]
    assert [float(reward[0]) for reward, _ in paid] == [0, 0, 0, 0, 0, 0, 0, 1]
    assert [bool(ended[0]) for _, ended in paid] == [False] * 7 + [True]


def test_tokens_are_counted_to_the_end_of_the_first_good_window() -> None:
    # five updates with mean (0 + 1 + 1 + 1 + 1) / 5 = 0.8 end with the fifth; the other seed never gets there
    success = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    tokens = np.array([[10, 10], [20, 20], [30, 25], [35, 30], [40, 40], [45, 50]])
    assert tokens_to_threshold(Curve(success, tokens), 50) == [40, 51]
    # within 39 tokens the fifth update was not sampled
    assert tokens_to_threshold(Curve(success, tokens), 39) == [40, 40]


def test_curves_are_compared_at_equal_tokens() -> None:
    # the 25th token is one of the first seed's third update, of the second seed's second
    curve = Curve(
        np.array([[0.0, 0.1], [0.2, 0.3], [0.4, 0.5]]), np.array([[10, 20], [20, 40], [30, 60]])
    )
    assert success_at(curve, 25).tolist() == [0.4, 0.3]
    assert success_at(curve, 20).tolist() == [0.2, 0.1]


def test_the_table_compares_with_the_better_control() -> None:
    def result(tokens: list[int]) -> dict[str, object]:
        return {"tokens": tokens, "budget": 48_000, "final": [1.0, 0.5]}

    results = {
        "broadcast normalise=mean": result([400, 600]),  # median 500
        "broadcast": result([800, 800]),
        "gigpo": result([200, 300]),  # 250 / 500
        "hgpo": result([12_300, 12_400]),
        "rtmc": result([48_001, 48_001]),
    }
    assert ratio(results, "gigpo") == 0.5
    assert cell(results, "gigpo") == "250 (x0.50); 0.75"
    assert cell(results, "hgpo") == "12.3k (x24.70); 0.75"
    assert cell(results, "rtmc") == "never, 2 never; 0.75"
    assert cell(results, "gae") == "-"


def test_the_step_is_chosen_on_other_seeds_than_it_is_measured_on() -> None:
    grid = (Settings(0.03, 512.0), Settings(0.1, 512.0))
    found = measure("control", METHODS[0].name, grid=grid, tuning=(1,), seeds=(2, 3), budget=384)
    assert len(found["tokens"]) == 2
    assert found["kl"] in (0.03, 0.1)
    assert len(found["curve"]) == 150
