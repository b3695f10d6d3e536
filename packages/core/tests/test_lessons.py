"""Lessons as files: what is written is read, the oldest go, and a rollout can be taken out of all."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from lightningrl.errors import ConfigError
from lightningrl.lessons import (
    LessonCall,
    forget,
    kept_lessons,
    lesson_path,
    lesson_rollouts,
    read_lesson,
    write_lesson,
)
from lightningrl.schema import RolloutId
from lightningrl_testkit.lessons import lesson_call, lesson_header

NOT_TRAINED: dict[str, Any] = {
    "reason": "cut", "row": None, "state": None, "parts": {}, "agent": "a",
    "engine_log_probs": np.zeros(0, np.float32), "trainer_log_probs": np.zeros(0, np.float32),
}  # fmt: skip


def test_what_is_written_is_read(tmp_path: Path) -> None:
    calls = [lesson_call(), lesson_call("r2", 1, **NOT_TRAINED)]
    write_lesson(tmp_path, lesson_header(4), calls, keep=1)
    found = read_lesson(tmp_path, 4, log_probs=True)
    assert found is not None
    assert found[0] == lesson_header(4)
    for written, read in zip(calls, found[1], strict=True):
        for one in fields(LessonCall):
            before, after = getattr(written, one.name), getattr(read, one.name)
            same = np.array_equal if isinstance(before, np.ndarray) else lambda a, b: a == b
            assert same(before, after), one.name
    assert [one.trained for one in found[1]] == [True, False]


def test_of_some_rollouts_only_theirs_is_read(tmp_path: Path) -> None:
    calls = [lesson_call(f"r{n % 3}", n) for n in range(3000)]  # several row groups
    write_lesson(tmp_path, lesson_header(1), calls, keep=1)
    found = read_lesson(tmp_path, 1, rollouts={RolloutId("r2")})
    assert found is not None
    assert [one.place for one in found[1]] == list(range(2, 3000, 3))
    assert not len(found[1][0].engine_log_probs)  # nobody asked
    assert read_lesson(tmp_path, 2) is None


def test_the_oldest_go(tmp_path: Path) -> None:
    for iteration in (1, 2, 3, 10):
        write_lesson(tmp_path, lesson_header(iteration), [], keep=2)
    assert kept_lessons(tmp_path) == [3, 10]


def test_a_rollout_is_taken_out_of_every_lesson(tmp_path: Path) -> None:
    for iteration in (1, 2):
        write_lesson(
            tmp_path, lesson_header(iteration), [lesson_call("r1"), lesson_call("r2")], keep=9
        )
    assert lesson_rollouts(tmp_path) == {"r1", "r2"}
    assert forget(tmp_path, {RolloutId("r1"), RolloutId("r9")}) == 2
    assert lesson_rollouts(tmp_path) == {"r2"}
    for iteration in (1, 2):
        found = read_lesson(tmp_path, iteration)
        assert found is not None
        assert found[0] == lesson_header(iteration)
        assert [one.rollout_id for one in found[1]] == ["r2"]
    assert forget(tmp_path / "new", {RolloutId("r1")}) == 0


def test_a_notebook_reads_plain_columns(tmp_path: Path) -> None:
    write_lesson(tmp_path, lesson_header(1), [lesson_call()], keep=1)
    (row,) = pq.read_table(lesson_path(tmp_path, 1)).to_pylist()
    assert row["rollout"] == "r1"
    assert dict(row["parts"]) == {"reward": 1.0, "baseline": 0.5}
    assert row["trainer_log_probs"] == [-0.5, -1.25, 0.0]


def test_another_file_is_refused_by_name(tmp_path: Path) -> None:
    write_lesson(tmp_path, lesson_header(1), [], keep=1)
    lesson_path(tmp_path, 1).write_bytes(b"PAR1 torn")
    with pytest.raises(ConfigError, match="no Parquet file"):
        read_lesson(tmp_path, 1)
