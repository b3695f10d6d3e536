"""Reading a run's metrics never trips over the trainer that is writing them."""

from pathlib import Path

import pytest

from lightningrl.errors import ConfigError, RunError
from lightningrl.metrics import best_iteration, read_metrics, series


def read(tmp_path: Path, text: str) -> list[dict[str, object]]:
    path = tmp_path / "metrics.jsonl"
    path.write_text(text, encoding="utf-8")
    return read_metrics(path)


def test_each_line_is_an_iteration(tmp_path: Path) -> None:
    lines = read(tmp_path, '{"iteration": 0, "val/reward": 0.5}\n{"iteration": 1}\n')
    assert lines == [{"iteration": 0, "val/reward": 0.5}, {"iteration": 1}]


def test_a_line_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    assert read(tmp_path, '{"iteration": 0}\n{"iteration": 1, "tr') == [{"iteration": 0}]
    assert read(tmp_path, '{"iteration": 0}\n{"iteration": 1}') == [{"iteration": 0}]


def test_an_empty_file_has_no_lines(tmp_path: Path) -> None:
    assert read(tmp_path, "") == []


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("nonsense", r"metrics\.jsonl:2: not JSON"),
        ("[1]", r"metrics\.jsonl:2: a line of metrics is a JSON object"),
        ('{"step": 1}', r"metrics\.jsonl:2: 'iteration' must be a whole number"),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, line: str, complaint: str) -> None:
    with pytest.raises(RunError, match=complaint):
        read(tmp_path, f'{{"iteration": 0}}\n{line}\n')


def test_a_run_without_metrics_says_when_there_will_be_some(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at the end of its first iteration"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_a_series_leaves_out_what_was_not_measured() -> None:
    lines = [
        {"iteration": 0, "r": 1},
        {"iteration": 1},
        {"iteration": 2, "r": None},
        {"iteration": 3, "r": float("nan")},
        {"iteration": 4, "r": 0.5},
    ]
    assert series(lines, "r") == ([0, 4], [1.0, 0.5])
    assert series(lines, "other") == ([], [])


def test_the_best_iteration_is_that_of_the_highest_sampled_score_and_the_earliest_of_equals() -> (
    None
):
    lines = [
        {"iteration": 0, "val/reward": 0.9, "val/reward_sampled": 0.9},
        {"iteration": 1, "train/reward": 1.0},
        {"iteration": 2, "val/reward": 0.3, "val/reward_sampled": 0.5},
        {"iteration": 4, "val/reward": 0.8, "val/reward_sampled": 0.5},
    ]
    assert best_iteration(lines) == 2
    greedy = [{"iteration": one["iteration"], "val/reward": one.get("val/reward")} for one in lines]
    assert best_iteration(greedy) == 4
    assert best_iteration(lines[:2]) is None
    assert best_iteration([]) is None
