"""The laboratory measures what ships, and what it writes down can be computed with a pencil."""

import numpy as np
import pytest

from credit_laboratory.__main__ import measure, rollouts_to_threshold
from credit_laboratory.batch import Episodes, decisions_of
from credit_laboratory.methods import METHODS, methods_of
from credit_laboratory.report import cell, ratio
from credit_laboratory.tasks import ENVIRONMENTS, Grid, Steps, UnmatchedGrid
from credit_laboratory.training import Settings, train
from lightningrl.credit.columns import read_decisions
from lightningrl.credit.state_keys import KeyRules
from lightningrl_testkit.traces import Did, group, trace

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


def test_states_of_the_unmatched_task_never_repeat() -> None:
    assert (
        len(set(decisions_of(EPISODES, UnmatchedGrid, step_rewards=False).states[0].tolist())) == 5
    )


@pytest.mark.parametrize("method", ["gigpo mean", "hgpo", "group_td", "rtmc"])
def test_where_states_never_repeat_a_method_trains_exactly_as_its_broadcast(method: str) -> None:
    control = "broadcast mean" if method == "gigpo mean" else "broadcast std"
    settings = Settings(kl=0.1, rate=512.0)
    mine, other = (train("unmatched_grid", one, settings, [7], 4) for one in (method, control))
    assert mine.tolist() == other.tolist()


def test_a_seeds_rollouts_do_not_depend_on_the_other_seeds() -> None:
    settings = Settings(kl=0.1, rate=512.0)
    together = train("grid", "gigpo mean", settings, [1, 2], 3)
    alone = train("grid", "gigpo mean", settings, [2], 3)
    assert together[:, 1].tolist() == pytest.approx(alone[:, 0].tolist())


@pytest.mark.parametrize("task", sorted(ENVIRONMENTS))
def test_every_method_that_runs_on_a_task_gives_success_rates(task: str) -> None:
    for method in methods_of(ENVIRONMENTS[task]):
        history = train(task, method, Settings(kl=0.1, rate=512.0), [3], 2)
        assert history.shape == (2, 1)
        assert ((history >= 0) & (history <= 1)).all()


def test_the_grid_pays_for_arriving_and_then_ends() -> None:
    """Context 2's goal is (1, 7): one move down, seven to the right, at the eighth turn."""
    walk = Grid(np.array([2]))
    moves = [0, 2, 2, 2, 2, 2, 2, 2]
    paid = [walk.act(turn, np.array([move]), np.zeros(1)) for turn, move in enumerate(moves)]
    assert [float(reward[0]) for reward, _ in paid] == [0, 0, 0, 0, 0, 0, 0, 1]
    assert [bool(ended[0]) for _, ended in paid] == [False] * 7 + [True]


def test_rollouts_are_counted_to_the_end_of_the_first_good_window() -> None:
    # five updates with mean (0 + 1 + 1 + 1 + 1) / 5 = 0.8 end with the fifth: 5 * 32; the other never
    history = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    assert rollouts_to_threshold(history) == [160, 7 * 32]


def test_the_table_compares_with_the_better_control() -> None:
    def result(rollouts: list[int]) -> dict[str, object]:
        return {"rollouts": rollouts, "budget": 4800, "final": [1.0, 0.5]}

    results = {
        "broadcast mean": result([400, 600]),  # median 500
        "broadcast std": result([800, 800]),
        "gigpo mean": result([200, 300]),  # 250 / 500
        "rtmc": result([4832, 4832]),
    }
    assert ratio(results, "gigpo mean") == 0.5
    assert cell(results, "gigpo mean") == "250 (x0.50); 0.75"
    assert cell(results, "rtmc") == "never, 2 never; 0.75"
    assert cell(results, "gae") == "-"


def test_the_step_is_chosen_on_other_seeds_than_it_is_measured_on() -> None:
    grid = (Settings(0.03, 512.0), Settings(0.1, 512.0))
    found = measure("control", METHODS[0].name, grid=grid, tuning=(1,), seeds=(2, 3), updates=12)
    assert len(found["rollouts"]) == 2
    assert found["kl"] in (0.03, 0.1)
    assert len(found["curve"]) == 12
