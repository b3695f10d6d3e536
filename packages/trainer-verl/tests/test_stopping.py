"""What somebody reads who has stopped a run."""

from __future__ import annotations

from pathlib import Path

from lightningrl_verl.start.folder import RunFolder
from lightningrl_verl.start.summary import said_when_stopped
from lightningrl_verl.training.checkpoint import Checkpoints, State


def test_a_run_without_a_checkpoint_does_not_say_that_it_goes_on_from_one(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert "nothing is saved" in said_when_stopped(folder)
    Checkpoints(folder.checkpoints, keep=1).write(State(0, {}, {}, {}, ()), lambda path: None)
    assert said_when_stopped(folder).endswith(f"goes on from {str(folder.checkpoints)!r}.")
