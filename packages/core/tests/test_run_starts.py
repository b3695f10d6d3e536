"""How a run's starts ended: what was written, and what files tell of one that was killed."""

import fcntl
import json
import os
from pathlib import Path
from typing import Any

import pytest

from lightningrl.cli.run_starts import How, Start, read_starts, trainer_process, write_starts
from lightningrl.errors import ConfigError

AT = "2026-01-02T03:04:05+00:00"
RUNS: dict[str, Any] = {"at": AT, "process": os.getpid()}


def test_starts_stand_beside_what_else_the_file_says(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"commit": "abc"}))
    starts = [Start(**RUNS, how=How.GUARD, ended_at=AT, why="train/kl was 9")]
    write_starts(tmp_path, starts)
    assert read_starts(tmp_path) == starts
    assert json.loads((tmp_path / "run.json").read_text())["commit"] == "abc"
    assert starts[0].said == "guard at 2026-01-02 03:04:05 UTC: train/kl was 9"


def test_a_start_without_an_end_was_killed_unless_its_folder_is_held(tmp_path: Path) -> None:
    write_starts(tmp_path, [Start(**RUNS)])
    (tmp_path / "metrics.jsonl").write_text("")
    os.utime(tmp_path / "metrics.jsonl", (1893553445, 1893553445))  # 2030-01-02T03:04:05Z
    (killed,) = read_starts(tmp_path)
    assert killed.said == "killed about at 2030-01-02 03:04:05 UTC"
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write(str(os.getpid()))
        lock.flush()
        assert trainer_process(tmp_path) == os.getpid()
        assert read_starts(tmp_path)[0].said == "runs"


def test_a_run_of_before_has_no_starts(tmp_path: Path) -> None:
    assert read_starts(tmp_path) == []
    for wrong in ({"at": 1}, {**RUNS, "at": "yesterday"}, {**RUNS, "ended_at": "noon"}):
        (tmp_path / "run.json").write_text(json.dumps({"starts": [wrong]}))
        with pytest.raises(ConfigError, match=r"run\.json"):
            read_starts(tmp_path)
