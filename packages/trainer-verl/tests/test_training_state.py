"""Batches, checkpoints, metrics, timing, folder: the loop's pure and durable parts."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lightningrl.errors import ConfigError, RunError, StoreLocked
from lightningrl.recipe import (
    Algorithm,
    Data,
    DataSource,
    Guards,
    LoadedRecipe,
    Trainer,
    parse_recipe,
)
from lightningrl.schema import Mode, RetryPolicy
from lightningrl_verl.start.folder import RunFolder
from lightningrl_verl.training.batches import (
    Splits,
    further_rollouts,
    scoring_rollouts,
    tasks_of,
    training_rollouts,
)
from lightningrl_verl.training.checkpoint import Checkpoints, State
from lightningrl_verl.training.metrics import MetricsLog
from lightningrl_verl.training.timing import Interval, overhead

TASKS = [(f"t{index}", {"n": index}) for index in range(6)]
RECIPE = parse_recipe(
    {
        "name": "demo",
        "agent": "a:b",
        "policies": {"policy": {"model": "m"}},
        "algorithm": {"iterations": 4, "tasks_per_iteration": 2, "group_size": 3},
        "optimiser": {"learning_rate": 0.1},
    }
)


def _algorithm(tasks: int) -> Algorithm:
    return Algorithm(iterations=9, tasks_per_iteration=tasks, group_size=2)


def test_a_pass_deals_out_every_task_once() -> None:
    dealt = [
        task_id
        for iteration in (1, 2, 3)
        for task_id, _ in tasks_of(TASKS, _algorithm(2), seed=7, iteration=iteration)
    ]
    assert sorted(dealt) == ["t0", "t1", "t2", "t3", "t4", "t5"]


def test_a_second_pass_has_another_order() -> None:
    first, second = (tasks_of(TASKS, _algorithm(6), seed=7, iteration=i) for i in (1, 2))
    assert sorted(first) == sorted(second)
    assert first != second


def test_fewer_tasks_than_an_iteration_wants_are_each_taken_once() -> None:
    assert sorted(tasks_of(TASKS, _algorithm(50), seed=0, iteration=3)) == TASKS


def test_the_same_recipe_enqueues_the_same_rollouts() -> None:
    first, again = (training_rollouts(RECIPE, TASKS, 2) for _ in range(2))
    assert first == again
    assert len({rollout.id for rollout in first}) == 2 * 3
    assert len({rollout.group_id for rollout in first}) == 2


def test_greedy_and_sampled_validation_are_different_rollouts() -> None:
    greedy = scoring_rollouts(RECIPE, TASKS, Mode.VAL, 1, "greedy")
    sampled = scoring_rollouts(RECIPE, TASKS, Mode.VAL, 1, "sampled")
    assert not {one.id for one in greedy} & {one.id for one in sampled}
    assert {one.sampling.temperature for one in greedy if one.sampling} == {0.0}
    assert {one.sampling.temperature for one in sampled if one.sampling} == {1.0}


def test_retries_replay_what_is_young_enough_unless_the_recipe_says_no() -> None:
    tree: dict[str, Any] = {
        "name": "demo",
        "agent": "a:b",
        "policies": {"policy": {"model": "m"}},
        "algorithm": {
            "iterations": 4,
            "tasks_per_iteration": 2,
            "group_size": 3,
            "max_staleness": 2,
        },
    }
    for replay, staleness in ((True, 2), (False, None)):
        recipe = parse_recipe({**tree, "runner": {"retry": {"replay": replay}}})
        made = training_rollouts(recipe, TASKS, 1)
        assert {one.replay_staleness for one in made} == {staleness}
        assert {type(one.retry) for one in made} == {RetryPolicy}, "older runners read no other"
    assert scoring_rollouts(RECIPE, TASKS, Mode.VAL, 1, "greedy")[0].replay_staleness == 0


def _state(iteration: int) -> State:
    return State(
        iteration=iteration,
        versions={"policy": iteration},
        credit={},
        metrics={},
        history=((iteration, "d"),),
    )


def test_the_newest_whole_checkpoint_counts(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.newest() is None
    for iteration in (1, 2, 3):
        checkpoints.write(_state(iteration), lambda path: (path / "weights").touch())
    newest = checkpoints.newest()
    assert newest is not None
    assert newest[1].iteration == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "iteration-000002",
        "iteration-000003",
    ]


def test_the_best_checkpoint_stays_until_another_is_better(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    kept: list[list[int]] = []
    for iteration, best in ((1, None), (2, 1), (3, 1), (4, 3), (5, 3)):
        checkpoints.write(_state(iteration), lambda path: None, best=best)
        kept.append(sorted(int(path.name[-6:]) for path in tmp_path.iterdir()))
    assert kept == [[1], [1, 2], [1, 3], [3, 4], [3, 5]]


def test_a_checkpoint_that_was_being_written_when_killed_is_gone(tmp_path: Path) -> None:
    Checkpoints(tmp_path, keep=2).write(_state(1), lambda path: (path / "weights").touch())

    def die(path: Path) -> None:
        (path / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Checkpoints(tmp_path, keep=2).write(_state(2), die)
    newest = Checkpoints(tmp_path, keep=2).newest()
    assert newest is not None
    assert newest[1] == _state(1)
    assert [path.name for path in tmp_path.iterdir()] == ["iteration-000001"]


def test_a_damaged_state_is_named(tmp_path: Path) -> None:
    path = Checkpoints(tmp_path, keep=2).write(_state(1), lambda path: None)
    (path / "state.json").write_text("{")
    with pytest.raises(RunError, match="iteration-000001"):
        Checkpoints(tmp_path, keep=2).newest()


def test_metrics_after_the_checkpoint_and_a_torn_line_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"iteration": 0}\n{"iteration": 1}\n{"iteration": 2}\n{"itera')
    log = MetricsLog(path)
    assert log.last_iteration == 2
    log.cut(after=1)
    log.append({"iteration": 2, "train/reward": 0.5})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [0, 1, 2]
    assert lines[2]["train/reward"] == 0.5


def test_an_iteration_cannot_stand_twice(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append({"iteration": 0})
    with pytest.raises(RunError, match="iteration 0 would follow"):
        log.append({"iteration": 0})


def _seconds(start: float, end: float) -> Interval:
    base = datetime(2026, 1, 1, tzinfo=UTC)
    return base + timedelta(seconds=start), base + timedelta(seconds=end)


def test_overhead_is_the_share_that_nothing_covers() -> None:
    # Of 10 s, [1, 4] and [3, 5] cover 4 and [8, 20] covers 2 more: 4 of 10 are uncovered.
    busy = [_seconds(8, 20), _seconds(1, 4), _seconds(3, 5)]
    assert overhead(_seconds(0, 10), busy) == pytest.approx(0.4)
    assert overhead(_seconds(0, 10), []) == 1.0
    assert overhead(_seconds(3, 3), []) == 0.0


def test_a_folder_has_one_trainer(tmp_path: Path) -> None:
    with (
        RunFolder(tmp_path / "run").locked(),
        pytest.raises(StoreLocked, match="is training in"),
        RunFolder(tmp_path / "run").locked(),
    ):
        pass


def test_a_changed_recipe_is_refused_naming_the_keys(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.adopt(LoadedRecipe(RECIPE, tmp_path / "recipe.yaml"))
    folder.adopt(LoadedRecipe(RECIPE, tmp_path / "recipe.yaml"))
    other = parse_recipe(
        {
            "name": "demo",
            "agent": "a:b",
            "policies": {"policy": {"model": "m"}},
            "algorithm": {"iterations": 5, "tasks_per_iteration": 2, "group_size": 4},
            "optimiser": {"learning_rate": 0.2},
        }
    )
    with pytest.raises(ConfigError, match=r"algorithm\.group_size, optimiser\.learning_rate"):
        folder.adopt(LoadedRecipe(other, tmp_path / "recipe.yaml"))


def test_a_run_gets_more_iterations_and_no_fewer_than_it_has(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.adopt(LoadedRecipe(RECIPE, tmp_path / "recipe.yaml"))
    folder.metrics.write_text("".join(f'{{"iteration": {one}}}\n' for one in range(4)))

    def adopt(iterations: int) -> None:
        assert RECIPE.algorithm is not None
        algorithm = msgspec.structs.replace(RECIPE.algorithm, iterations=iterations)
        changed = msgspec.structs.replace(RECIPE, algorithm=algorithm)
        folder.adopt(LoadedRecipe(changed, tmp_path / "recipe.yaml"))

    adopt(9)
    adopt(3)
    with pytest.raises(ConfigError, match=r"algorithm\.iterations differ"):
        adopt(2)


def test_other_tasks_than_a_run_began_with_are_told_by_their_digest(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.adopt(LoadedRecipe(RECIPE, tmp_path / "recipe.yaml"))
    before = Splits([("0", {"a": 1, "b": 2})], [], [])
    for source in ("tasks.jsonl", "m:f"):
        data = Data(train=DataSource(source))
        assert folder.check_tasks(data, before) == []
        assert folder.check_tasks(data, Splits([("0", {"b": 2, "a": 1})], [], [])) == []
        after = Splits([("0", {"a": 1, "b": 3})], [], [])
        if source == "m:f":  # it may draw them anew each time
            (told,) = folder.check_tasks(data, after)
            assert "data.train: 'm:f' has other tasks" in told
        else:
            with pytest.raises(ConfigError, match=r"'tasks\.jsonl' has other tasks .*digest"):
                folder.check_tasks(data, after)


def test_servers_of_others_may_move_while_a_run_rests(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)

    def at(port: int, model: str) -> LoadedRecipe:
        served = {"model": model, "vllm": {"urls": [f"http://a:{port}"], "folder": f"/{port}"}}
        judge = {"url": f"http://a:{port}/v1", "trainable": False}
        policies = {"policy": served, "judge": judge}
        recipe = parse_recipe({"name": "demo", "agent": "a:b", "policies": policies})
        return LoadedRecipe(recipe, tmp_path / "recipe.yaml")

    folder.adopt(at(1, "m"))
    folder.adopt(at(2, "m"))
    with pytest.raises(ConfigError, match=r"policies\.policy\.model differ"):
        folder.adopt(at(2, "other"))


def test_the_processes_may_change_when_a_run_goes_on(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.adopt(LoadedRecipe(RECIPE, tmp_path / "recipe.yaml"))
    spread = msgspec.structs.replace(RECIPE, cluster="ray", trainer=Trainer(ranks=2))
    folder.adopt(LoadedRecipe(spread, tmp_path / "recipe.yaml"))
    faster = msgspec.structs.replace(spread, trainer=Trainer(ranks=2, dtype="bf16"))
    with pytest.raises(ConfigError, match=r"trainer\.dtype differ"):
        folder.adopt(LoadedRecipe(faster, tmp_path / "recipe.yaml"))


def test_guards_may_change_when_a_run_goes_on(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.adopt(LoadedRecipe(RECIPE, tmp_path / "recipe.yaml"))
    eased = msgspec.structs.replace(RECIPE, guards=Guards(max_kl=None))
    folder.adopt(LoadedRecipe(eased, tmp_path / "recipe.yaml"))
    assert "max_kl: null" in folder.recipe.read_text()


def test_further_tasks_are_others_and_end_at_the_limit() -> None:
    assert RECIPE.algorithm is not None
    more = msgspec.structs.replace(RECIPE.algorithm, further_tasks=3)
    recipe = msgspec.structs.replace(RECIPE, algorithm=more)
    first = {one.task_id for one in training_rollouts(recipe, TASKS, 2)}
    two = further_rollouts(recipe, TASKS, 2, 0, 2)
    rest = further_rollouts(recipe, TASKS, 2, 2, 9)
    assert len(two) == 2 * 3
    # Three at most; all of them the same iteration's.
    assert len(rest) == 1 * 3
    assert len(first | {one.task_id for one in [*two, *rest]}) == 2 + 3
    assert {one.iteration for one in [*two, *rest]} == {2}
    assert further_rollouts(recipe, TASKS, 2, 0, 2) == two
    assert further_rollouts(recipe, TASKS, 2, 3, 9) == []


def test_other_initial_weights_are_refused(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.adopt(LoadedRecipe(RECIPE, tmp_path / "recipe.yaml"))
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text(name)
    folder.check_base({"policy": tmp_path / "one"})
    folder.check_base({"policy": tmp_path / "one"})
    with pytest.raises(ConfigError, match="policy 'policy' started from other weights"):
        folder.check_base({"policy": tmp_path / "two"})


def test_without_validation_there_is_nothing_to_draw_before_the_first_training_reward(
    tmp_path: Path,
) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append({"iteration": 0, "policy_version": 0})
    assert not log.has_rewards
    log.append({"iteration": 1, "train/reward": 0.0})
    assert log.has_rewards
