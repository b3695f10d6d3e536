"""What is noted in `run.json` of how a start ended."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from lightningrl.cli.run_starts import How, Start, read_starts, write_starts
from lightningrl.errors import ConfigError, GuardTripped
from lightningrl_verl.start.starts import noted_start

LONG = "x" * 3000


@pytest.mark.parametrize(
    ("raised", "how", "why"),
    [
        (None, How.FINISHED, ""),
        (KeyboardInterrupt(), How.STOPPED, ""),
        (asyncio.CancelledError(), How.STOPPED, ""),
        (GuardTripped("train/kl was 9"), How.GUARD, "train/kl was 9"),
        (ConfigError("no such folder"), How.ERROR, "no such folder"),
        (ValueError("text <b>"), How.ERROR, "ValueError: text <b>"),
        (ConfigError(LONG), How.ERROR, LONG[:2000]),
    ],
    ids=["finished", "Ctrl-C", "cancelled", "guard", "our error", "another's error", "long error"],
)  # fmt: skip
def test_a_start_says_how_it_ended(
    tmp_path: Path, raised: BaseException | None, how: How, why: str
) -> None:
    if raised is None:
        with noted_start(tmp_path):
            assert read_starts(tmp_path)[-1].how is not How.FINISHED
    else:
        with pytest.raises(type(raised)), noted_start(tmp_path):
            raise raised
    (start,) = read_starts(tmp_path)
    assert (start.how, start.why) == (how, why)
    assert start.ended_at is not None
    assert start.ended_at >= start.at


def test_the_next_start_notes_that_the_one_before_was_killed(tmp_path: Path) -> None:
    write_starts(tmp_path, [Start("2026-01-02T03:04:05+00:00", 1)])
    with noted_start(tmp_path):
        pass
    killed, finished = read_starts(tmp_path)
    assert (killed.at[:4], killed.how, finished.how) == ("2026", How.KILLED, How.FINISHED)
