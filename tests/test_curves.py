"""The cells of `make curves`: what is kept of one, and the page and charts that come of them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from test_warm_start import policies, write_demonstrations
from user_project import Project

from lightningrl.recipe.loading import load_recipe

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks" / "curves"


@pytest.fixture(autouse=True)
def _scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripts import each other by name, as scripts in one folder do."""
    monkeypatch.syspath_prepend(str(FOLDER))


def _scores(sampled: float, greedy: float) -> dict[str, Any]:
    return {
        how: {
            "reward": {"mean": mean, "low": mean, "high": mean},
            "rewards": {"a": mean},
            "failed": {},
            "parts": {"format": 0.9},
        }
        for how, mean in (("sampled", sampled), ("greedy", greedy))
    }


def _cell(seed: int, gain: float) -> dict[str, Any]:
    difference = {"mean": gain, "low": gain - 0.05, "high": gain + 0.05}
    return {
        "benchmark": "math",
        "seed": seed,
        "commit": "0123456789",
        "machine": "a machine",
        "commands": ["lightningrl train x", "lightningrl eval x"],
        "warm_start_seconds": [60.0],
        "lines": [
            {"iteration": 0, "val/reward_sampled": 0.2, "timing/validate_seconds": 30.0},
            {"iteration": 1, "train/reward": 0.25, "timing/iteration_seconds": 10.0},
            {"iteration": 2, "train/reward": 0.5, "timing/iteration_seconds": 20.0},
        ],
        "test": {
            "began": _scores(0.2, 0.4),
            "last": _scores(0.2 + gain, 0.6),
            "difference": {"sampled": difference, "greedy": difference},
        },
    }


def test_the_table_has_each_cell_and_says_which_were_not_run() -> None:
    from results_page import table

    cells = {("math", 0): _cell(0, 0.3), ("math", 1): _cell(1, 0.1)}
    page = table(cells, {}, ["sql", "math"], [0, 1]).splitlines()
    assert "| sql | 0 | not run |  |  |  |  |  |  |" in page
    # 60 s of warm start, 30 of iterations, 30 of scoring.
    row = "| math | 0 | 0.200 | 0.500 | +0.300 (+0.250 to +0.350) | 0.400 → 0.600 | 0.250 → 0.500 | 2 | `0123456` |"
    assert row in page
    assert "| math | mean | | | +0.200 | | | | |" in page
    assert not any(line.startswith("| sql | mean") for line in page)
    assert "Test, sampled, began: format 0.900." in page
    assert "- math: the controls were not run." in page


def test_the_page_says_first_whether_the_controls_were_left_behind() -> None:
    from results_page import table

    below = {"mean": 0.05, "low": -0.02, "high": 0.12}
    controls = {
        "epochs": 3,
        "commands": ["lightningrl sft x"],
        "base": _scores(0.01, 0.0),
        "controls": {
            "more": {**_scores(0.45, 0.5), "below_last": below},
            "right": {**_scores(0.3, 0.4), "below_last": {"mean": 0.2, "low": 0.1, "high": 0.3}},
        },
    }
    page = table({("math", 0): _cell(0, 0.3)}, {("math", 0): controls}, ["math"], [0]).splitlines()
    verdict = "does not end 0.10 above the better control: 0.500, 0.450"
    assert verdict in page[2]
    assert "difference +0.050 (-0.020 to +0.120)" in page[2]
    assert "| math | 0 | base |  | 0.010 | 0.000 |  |" in page
    assert "| math | 0 | more | 3 | 0.450 | 0.500 | +0.050 (-0.020 to +0.120) |" in page
    assert "lightningrl sft x" in page
    controls["controls"]["more"] = {**_scores(0.4, 0.5), "below_last": below}
    again = table({("math", 0): _cell(0, 0.3)}, {("math", 0): controls}, ["math"], [0])
    assert "reinforcement learning ends 0.10 above" in again


def test_a_control_takes_as_long_as_its_cell() -> None:
    from curves import epochs_of, paired

    # 60 s of warm start and 30 of iterations: one pass and a half, and never fewer than two.
    assert epochs_of(_cell(0, 0.3)) == 2
    assert epochs_of({**_cell(0, 0.3), "warm_start_seconds": [10.0]}) == 4
    found = paired({"a": 0.0, "b": 1.0, "lost": 1.0}, {"a": 1.0, "b": 1.0})
    assert found["mean"] == 0.5


def test_figure_and_page_are_written_also_where_nothing_was_run(tmp_path: Path) -> None:
    from results_page import write_report

    for count in (0, 1, 2):
        if count:
            path = tmp_path / f"math-seed{count - 1}.json"
            path.write_text(json.dumps(_cell(count - 1, 0.3)), encoding="utf-8")
        write_report(tmp_path, ["sql", "math"], [0, 1])
        assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
        page = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
        assert page.count("| not run |") == 4 - count


def test_every_benchmark_has_a_recipe() -> None:
    from curves import RECIPES

    assert sorted(RECIPES) == ["math", "rag", "sql"]
    for recipe in RECIPES.values():
        policy = load_recipe(recipe).recipe.policies["policy"]
        # The controls count on these.
        assert policy.warm_start is not None
        assert policy.warm_start.epochs == 1
        assert policy.warm_start.args["slips"] == 0.2


@pytest.mark.long
def test_a_cell_and_its_controls_are_measured_once(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    from curves import Cell, measure, measure_controls

    monkeypatch.chdir(project.folder)
    for name, value in project.environment.items():
        monkeypatch.setenv(name, value)
    write_demonstrations(project)
    (project.folder / "shown.py").write_text(SHOWN, encoding="utf-8")
    told = policies(demonstrations="shown:shown", args={"slips": 0.2}, epochs=1)
    cell = Cell("tiny", project.recipe(policies=told), 7)
    results = project.folder / "results"
    with pytest.raises(SystemExit, match=r"tiny-seed7\.json is missing"):
        measure_controls(cell, results)
    measure(cell, results)
    kept = json.loads((results / "tiny-seed7.json").read_text(encoding="utf-8"))
    assert [line["iteration"] for line in kept["lines"]] == [0, 1, 2, 3]
    assert kept["test"]["tasks"] == 8
    assert 0 <= kept["test"]["last"]["sampled"]["reward"]["mean"] <= 1
    assert sys.executable not in json.dumps(kept["commands"])
    measure_controls(cell, results)
    controls = json.loads((results / "tiny-seed7-controls.json").read_text(encoding="utf-8"))
    assert controls["epochs"] >= 2
    assert set(controls["controls"]) == {"more", "right"}
    assert "policies.policy.warm_start.args.slips=0" in controls["commands"][1]
    before = {path: path.read_text(encoding="utf-8") for path in results.iterdir()}
    measure(cell, results)
    measure_controls(cell, results)
    assert {path: path.read_text(encoding="utf-8") for path in results.iterdir()} == before


SHOWN = """
import json
from pathlib import Path

def shown(slips):
    lines = Path(__file__).with_name("shown.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]
"""
