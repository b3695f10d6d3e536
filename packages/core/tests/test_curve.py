"""The reward curve is drawn from the metrics, and replaced whole."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lightningrl.curve import _moving_mean, draw_curve
from lightningrl.errors import ConfigError, RunError

PNG = b"\x89PNG\r\n\x1a\n"


def write(folder: Path, *lines: dict[str, object]) -> Path:
    path = folder / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.mark.parametrize("iterations", [0, 1, 8, 40])
def test_any_length_of_run_is_drawn(tmp_path: Path, iterations: int) -> None:
    lines: list[dict[str, object]] = [
        {"iteration": 0, "val/reward": 0.1, "val/reward_sampled": 0.08}
    ]
    lines += [{"iteration": i, "train/reward": i / 40} for i in range(1, iterations + 1)]
    lines[-1] |= {"val/reward": 0.9, "test/reward": 0.8}
    out = tmp_path / "curve.png"
    draw_curve(write(tmp_path, *lines), out, "a title")
    assert out.read_bytes().startswith(PNG)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curve.png", "metrics.jsonl"]


def test_without_matplotlib_the_error_names_the_extra(tmp_path: Path) -> None:
    broken = tmp_path / "matplotlib"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise ImportError('not for this platform')")
    metrics = write(tmp_path, {"iteration": 1, "train/reward": 0.5})
    code = (
        "import sys, pathlib, lightningrl.curve as c\n"
        "c.draw_curve(*map(pathlib.Path, sys.argv[1:]), 't')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(metrics), str(tmp_path / "curve.png")],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert "pip install 'lightningrl[plot]'" in done.stderr


def test_parts_of_the_reward_are_drawn_beside_it(tmp_path: Path) -> None:
    pictures: list[bytes] = []
    for parts in ({}, {"val/part_sampled/format": 0.9, "val/part_sampled/accuracy": 0.2}):
        lines = [{"iteration": i, "val/reward_sampled": i / 4, **parts} for i in range(3)]
        draw_curve(write(tmp_path, *lines), tmp_path / "curve.png", "t")
        pictures.append((tmp_path / "curve.png").read_bytes())
    assert pictures[0] != pictures[1]


def test_a_former_picture_is_replaced(tmp_path: Path) -> None:
    out = tmp_path / "curve.png"
    out.write_text("an older picture")
    draw_curve(write(tmp_path, {"iteration": 1, "train/reward": 0.5}), out, "t")
    assert out.read_bytes().startswith(PNG)


def test_rewards_of_any_range_are_drawn(tmp_path: Path) -> None:
    lines = [{"iteration": i, "train/reward": value} for i, value in enumerate([-3.0, 0, 50])]
    draw_curve(write(tmp_path, *lines), tmp_path / "a.png", "t")
    draw_curve(write(tmp_path, {"iteration": 1, "train/reward": 0.0}), tmp_path / "b.png", "t")
    assert (tmp_path / "a.png").exists()
    assert (tmp_path / "b.png").exists()


def test_of_a_fine_tuning_the_losses_are_drawn(tmp_path: Path) -> None:
    lines = [
        {"iteration": 0, "sft/val_loss": 2.0},
        {"iteration": 1, "sft/loss": 2.1},
        {"iteration": 2, "sft/loss": 1.0, "sft/val_loss": 1.1},
    ]
    draw_curve(write(tmp_path, *lines), tmp_path / "curve.png", "t")
    assert (tmp_path / "curve.png").read_bytes().startswith(PNG)


def test_metrics_without_a_reward_draw_nothing(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no reward yet"):
        draw_curve(write(tmp_path, {"iteration": 0, "loss": 1.0}), tmp_path / "curve.png", "t")
    assert not (tmp_path / "curve.png").exists()


def test_a_run_without_metrics_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there are no metrics"):
        draw_curve(tmp_path / "metrics.jsonl", tmp_path / "curve.png", "t")


def test_the_moving_mean_is_of_fewer_values_at_the_ends() -> None:
    # windows of 3: (0+3)/2, (0+3+6)/3, (3+6+9)/3, (6+9)/2
    assert _moving_mean([0.0, 3.0, 6.0, 9.0], 3) == [1.5, 3.0, 6.0, 7.5]
