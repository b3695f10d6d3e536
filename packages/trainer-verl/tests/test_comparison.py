"""`lightningrl compare` without training: its cells, what they have in common, and its page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from lightningrl.errors import ConfigError, RunError
from lightningrl.recipe import Algorithm
from lightningrl_verl.start.comparison import Comparison, _cell, check_comparison
from lightningrl_verl.start.comparison_figure import draw, mean_curve
from lightningrl_verl.start.comparison_page import page, told_of
from lightningrl_verl.training.metrics import has_ended

RECIPE: dict[str, Any] = {
    "name": "told",
    "agent": "mine:agent",
    "seed": 7,
    "data": {"train": {"source": "tasks.jsonl"}, "test": {"source": "tasks.jsonl"}},
    "policies": {
        "policy": {
            "model": "model",
            "tool_parser": "compact",
            "warm_start": {"demonstrations": "shown.jsonl", "learning_rate": 0.001},
        }
    },
    "algorithm": {"iterations": 9, "tasks_per_iteration": 1, "group_size": 4},
    "optimiser": {"learning_rate": 0.001},
}
OWN = """
def agent(task):
    return ""

def credit(groups, scale=1.0):
    return [[[scale for _ in trace.transitions] for trace in group.traces] for group in groups]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(OWN, encoding="utf-8")
    (tmp_path / "tasks.jsonl").write_text('{"id": "a", "input": "x"}\n', encoding="utf-8")
    shown = (
        '{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}\n'
    )
    (tmp_path / "shown.jsonl").write_text(shown, encoding="utf-8")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}", encoding="utf-8")
    return tmp_path


def planned(folder: Path, *credit: str, seeds: int = 2, **changes: Any) -> Comparison:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, **changes}), encoding="utf-8")
    return check_comparison(path, [], credit=credit, tokens=100, seeds=seeds, score=None)


def test_cells_differ_in_method_and_seed_and_begin_alike(folder: Path) -> None:
    plan = planned(folder, "broadcast,mine:credit scale=2", "gae")
    assert [one.name for one in plan.methods] == ["broadcast", "mine:credit scale=2", "gae"]
    assert plan.seeds == (7, 8)
    cells = [_cell(plan, method, seed) for method in plan.methods for seed in plan.seeds]
    recipes = [cell.loaded.recipe for cell in cells]
    own = recipes[3]
    assert own.algorithm is not None
    assert (own.seed, own.algorithm.credit, own.algorithm.credit_args) == (
        8,
        "mine:credit",
        {"scale": 2},
    )
    assert own.folder == "runs/told-compare/mine-credit-scale-2-seed8"
    assert len({one.folder for one in recipes}) == len({one.name for one in recipes}) == 6
    for one in recipes:
        assert one.algorithm is not None
        assert one.algorithm.sampled_tokens == 100
        warm = one.policies["policy"].warm_start
        assert warm is not None
        assert warm.seed == 7
    # A critic is there for the method that asks for its values, and for no other.
    assert [one.critic is not None for one in recipes] == [False] * 4 + [True] * 2


def test_the_recipes_own_method_keeps_its_arguments(folder: Path) -> None:
    algorithm = {**RECIPE["algorithm"], "credit": "gigpo", "credit_args": {"gamma": 0.5}}
    plan = planned(folder, "gigpo,gigpo gamma=0.9,broadcast", algorithm=algorithm, critic={})
    names = [one.name for one in plan.methods]
    assert names == ["gigpo gamma=0.5", "gigpo gamma=0.9", "broadcast"]
    assert all("critic=null" in one.changes for one in plan.methods)


def test_who_compares_branches_has_some_and_nobody_else(folder: Path) -> None:
    plan = planned(folder, "broadcast,vine")
    assert ["algorithm.forks={}" in one.changes for one in plan.methods] == [False, True]
    algorithm = {**RECIPE["algorithm"], "credit": "vine", "forks": {"per_group": 3}}
    plan = planned(folder, "broadcast,vine", algorithm=algorithm)
    forks = []
    for method in plan.methods:
        of_cell = _cell(plan, method, 7).loaded.recipe.algorithm
        assert of_cell is not None
        forks.append(None if of_cell.forks is None else of_cell.forks.per_group)
    assert forks == [None, 3]  # the recipe's own


@pytest.mark.parametrize(
    ("credit", "changes", "complaint"),
    [
        ("broadcast", {}, "two different methods"),
        ("broadcast,broadcast", {}, "two different methods"),
        ("broadcast,gigo", {}, "Did you mean 'gigpo'"),
        ("broadcast,gigpo gama=1", {}, "Did you mean 'gamma'"),
        ("broadcast,gigpo", {"data": {"train": {"source": "tasks.jsonl"}}}, "data.test"),
        (
            "running_baseline,gigpo",
            {"algorithm": {**RECIPE["algorithm"], "group_size": 1, "min_group": 1}},
            "group of one teaches nothing",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_runs(
    folder: Path, credit: str, changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        planned(folder, credit, **changes)
    assert not (folder / "runs").exists()


def test_one_seed_shows_no_difference(folder: Path) -> None:
    with pytest.raises(ConfigError, match="from two seeds on"):
        planned(folder, "broadcast,gigpo", seeds=1)


def cell(score: float, sampled: int = 60) -> list[dict[str, Any]]:
    """Two iterations of `sampled` tokens each."""
    return [
        {"iteration": 0},
        {
            "iteration": 1,
            "train/sampled_tokens": sampled,
            "train/prompt_tokens": 1000,
            "train/tool_calls_per_rollout": 1.5,
            "train/rollouts": 4,
            "train/reward": 0.25,
            "timing/iteration_seconds": 2.0,
        },
        {
            "iteration": 2,
            "train/sampled_tokens": sampled,
            "train/reward": score,
            "timing/iteration_seconds": 1.0,
            "test/reward": score,
        },
    ]


def told(*cells: tuple[str, int, list[dict[str, Any]]]) -> dict[str, Any]:
    return told_of(
        cells, methods=["broadcast", "g2po"], seeds=[1, 2, 3], tokens=100, score="test/reward"
    )


def test_the_page_has_differences_by_seed_and_what_each_cell_cost() -> None:
    found = told(
        ("broadcast", 1, cell(0.5)), ("g2po", 1, cell(0.6)),
        ("broadcast", 2, cell(0.1)), ("g2po", 2, cell(0.3)),
        ("broadcast", 3, cell(0.2)), ("g2po", 3, cell(0.5)),
    )  # fmt: skip
    # Differences 0.1, 0.2, 0.3: a tenth of the example of `contrast`.
    assert found["differences"]["g2po"] == {
        "mean": 0.2, "low": -0.048414, "high": 0.448414, "detectable": 0.309651, "seeds": 3,
    }  # fmt: skip
    lines = page(found).splitlines()
    row = "| g2po | 3 | 0.467 | +0.200 | -0.048 to +0.448 | 0.310 | 2 | 120 | 1,000 | 6 | 3 |"
    assert row in lines
    assert "| broadcast | 0.500 | 0.100 | 0.200 |" in lines


def test_a_method_is_drawn_by_its_mean_at_equal_tokens(tmp_path: Path) -> None:
    found = told(
        ("broadcast", 1, cell(0.5)), ("g2po", 1, cell(0.6, sampled=50)), ("g2po", 2, cell(0.8, sampled=70))
    )  # fmt: skip
    curves = [one["curve"] for one in found["cells"] if one["method"] == "g2po"]
    assert curves == [[(50, 0.25), (100, 0.6)], [(70, 0.25), (140, 0.8)]]
    tokens, means = mean_curve(curves)
    # At 70 the first has 0.25 + 0.35 * 20 / 50 = 0.39; at 100 the second 0.25 + 0.55 * 30 / 70 = 0.485714.
    assert (tokens[0], tokens[-1]) == (70, 100)
    assert (means[0], means[-1]) == pytest.approx((0.32, 0.542857), abs=1e-6)
    # Seeds that share no stretch have no mean, and neither has a method that was not run.
    assert mean_curve([[(10, 0.5), (20, 0.5)], [(30, 0.5), (40, 0.5)]]) == ([], [])
    assert mean_curve([[]]) == mean_curve([]) == ([], [])
    for some in (found, told()):
        draw(some, tmp_path / "compare.png")
        assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert [one.name for one in tmp_path.iterdir()] == ["compare.png"]


def test_a_page_of_some_cells_says_what_is_missing() -> None:
    found = told(("broadcast", 1, cell(0.5)), ("broadcast", 2, cell(0.5)))
    assert found["differences"] == {}
    assert "2 of 6 cells" in page(found)
    assert "| g2po | 0 | not run |" in page(found)
    # One pair shows no spread.
    assert told(("broadcast", 1, cell(0.5)), ("g2po", 1, cell(0.6)))["differences"] == {}


def test_a_cell_with_fewer_tokens_or_no_score_is_not_compared() -> None:
    # 40 of 100 tokens in 2 iterations: half as many again as 2 * 100 / 40
    with pytest.raises(RunError, match=r"sampled 40 of 100 tokens.*algorithm\.iterations=8"):
        told(("broadcast", 1, cell(0.5, sampled=20)))
    with pytest.raises(RunError, match="no 'test/reward'"):
        told(("broadcast", 1, [*cell(0.5)[:-1], {**cell(0.5)[-1], "test/reward": None}]))


def test_a_run_ends_with_its_iterations_or_with_its_tokens() -> None:
    algorithm = Algorithm(iterations=2, tasks_per_iteration=1, group_size=2, sampled_tokens=100)
    assert [has_ended(algorithm, cell(0.5)[:number]) for number in range(4)] == [False, False, False, True]  # fmt: skip
    assert has_ended(algorithm, cell(0.5, sampled=100)[:2])
    assert not has_ended(algorithm, cell(0.5, sampled=99)[:2])
