"""The cells of `make curves`: what is kept of one, and the page and charts that come of them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from user_project import Project

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks" / "curves"


@pytest.fixture(autouse=True)
def _scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripts import each other by name, as scripts in one folder do."""
    monkeypatch.syspath_prepend(str(FOLDER))


def _scores(sampled: float, greedy: float) -> dict[str, Any]:
    return {
        how: {
            "reward": {"mean": mean, "low": mean, "high": mean},
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
    page = table(cells, ["sql", "math"], [0, 1]).splitlines()
    assert "| sql | 0 | not run |  |  |  |  |  |  |" in page
    # 60 s of warm start, 30 of iterations, 30 of scoring.
    row = "| math | 0 | 0.200 | 0.500 | +0.300 (+0.250 to +0.350) | 0.400 → 0.600 | 0.250 → 0.500 | 2 | `0123456` |"
    assert row in page
    assert "| math | mean | | | +0.200 | | | | |" in page
    assert not any(line.startswith("| sql | mean") for line in page)
    assert "Test, sampled, began: format 0.900." in page


def test_figure_and_page_are_written_also_where_nothing_was_run(tmp_path: Path) -> None:
    from results_page import write_report

    for count in (0, 1, 2):
        if count:
            path = tmp_path / f"math-seed{count - 1}.json"
            path.write_text(json.dumps(_cell(count - 1, 0.3)), encoding="utf-8")
        write_report(tmp_path, ["sql", "math"], [0, 1])
        assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
        page = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
        assert page.count("not run") == 4 - count


def test_every_benchmark_has_a_recipe() -> None:
    from curves import RECIPES

    assert sorted(RECIPES) == ["math", "rag", "sql"]
    for recipe in RECIPES.values():
        assert recipe.is_file()


@pytest.mark.long
def test_a_cell_is_trained_scored_and_kept_once(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    from curves import Cell, measure

    monkeypatch.chdir(project.folder)
    for name, value in project.environment.items():
        monkeypatch.setenv(name, value)
    cell = Cell("tiny", project.recipe(), 7)
    measure(cell, project.folder / "results")
    path = project.folder / "results" / "tiny-seed7.json"
    kept = json.loads(path.read_text(encoding="utf-8"))
    assert [line["iteration"] for line in kept["lines"]] == [0, 1, 2, 3]
    assert kept["test"]["tasks"] == 8
    assert 0 <= kept["test"]["last"]["sampled"]["reward"]["mean"] <= 1
    assert sys.executable not in json.dumps(kept["commands"])
    measure(cell, project.folder / "results")
    assert json.loads(path.read_text(encoding="utf-8")) == kept
