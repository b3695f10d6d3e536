"""The drift report: gaps per row, sums per iteration and run, and what `lightningrl drift` shows."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from lightningrl.cli import commands
from lightningrl.experience.drift import (
    DriftReport,
    Gap,
    RolloutDrift,
    joined,
    log_prob_gaps,
    rollout_drift,
    total,
)
from lightningrl.experience.trajectory import Break, Row, merge
from lightningrl.schema import RolloutId, StepId
from lightningrl_testkit.records import llm_step
from lightningrl_verl.training.drift import with_gaps, write_drift
from lightningrl_verl.training.files import RunFiles
from lightningrl_verl.training.rows import one_row_per_call

A, B = RolloutId("r-a"), RolloutId("r-b")


def two_turns(rollout: RolloutId) -> tuple[RolloutDrift, list[Row]]:
    """One row of two calls: tokens 1 [7 8] 2 [9]."""
    merged = merge(
        [
            llm_step("s1", [1], [7, 8], rollout=rollout),
            llm_step("s2", [1, 7, 8, 2], [9], rollout=rollout, later=True),
        ]
    )
    return rollout_drift(rollout, "policy", merged), list(merged.rows)


def now(*logprobs: float) -> np.ndarray:
    return np.array(logprobs, np.float32)


def test_a_gap_is_over_trained_tokens_alone() -> None:
    _, rows = two_turns(A)
    # The engine said -0.5 three times; apart by 0, 0.25 and 0.5. What stands at prompt tokens doesn't count.
    (gap,) = log_prob_gaps(rows, [now(5.0, -0.5, -0.75, 5.0, -1.0)])
    assert gap == Gap(tokens=3, mean=0.25, max=0.5)


def test_gaps_join_by_tokens() -> None:
    # (1 * 0.4 + 3 * 0.2) / 4 = 0.25
    assert joined([Gap(1, 0.4, 0.4), None, Gap(3, 0.2, 0.3)]) == Gap(4, pytest.approx(0.25), 0.4)
    assert joined([None]) is None


@pytest.mark.parametrize("per_call", [False, True])
def test_each_row_of_the_report_has_the_gap_of_what_was_updated(per_call: bool) -> None:
    (first, rows), (second, _) = two_turns(A), two_turns(B)
    updated = one_row_per_call(rows) if per_call else rows
    zero = [np.zeros(len(row.token_ids), np.float32) for row in updated]
    measured = with_gaps(
        [first, second], {"policy": updated}, {"policy": log_prob_gaps(updated, zero)}
    )
    assert [row.gap for one in measured for row in one.rows] == [Gap(3, 0.5, 0.5), None]


def _written(folder: Path) -> RunFiles:
    (folder / "recipe.yaml").write_text("name: run\nagent: a:b\n", encoding="utf-8")
    (first, rows), (second, _) = two_turns(A), two_turns(B)
    zero = [np.zeros(len(row.token_ids), np.float32) for row in rows]
    measured = with_gaps([first], {"policy": rows}, {"policy": log_prob_gaps(rows, zero)})
    broken = msgspec.structs.replace(
        second,
        sampled=8,
        masked=1,
        dropped=4,
        untrainable={"a grammar": 5},
        continuing=2,
        continued=0,
        breaks=(Break(B, StepId("s2"), "retokenised", 3, (4, 5), (7,)),),
    )
    run = RunFiles(folder)
    write_drift(run, 1, measured)
    write_drift(run, 2, [*measured, broken])
    return run


def test_sums_are_kept_per_iteration_and_for_the_run(tmp_path: Path) -> None:
    run = _written(tmp_path)
    report = msgspec.json.decode(run.drift.read_bytes(), type=DriftReport)
    # Three tokens trained in iteration 1; in iteration 2 these, and of another rollout 8 - 1 - 4.
    assert [report.iterations[name].trained for name in ("1", "2")] == [3, 6]
    assert (report.run.sampled, report.run.masked, report.run.dropped) == (14, 1, 4)
    # One continued of one, one of one, none of two.
    assert report.run.merged_share == pytest.approx(2 / 4)
    assert report.run.breaks == {"retokenised": 1}
    assert report.run.gap == Gap(6, 0.5, 0.5)


def test_an_iteration_that_is_done_again_replaces_itself_and_what_came_after(
    tmp_path: Path,
) -> None:
    run = _written(tmp_path)
    write_drift(run, 1, [])
    report = msgspec.json.decode(run.drift.read_bytes(), type=DriftReport)
    assert report == DriftReport(run=total([]), iterations={"1": total([])})
    assert run.rollout_drift(1).read_bytes() == b""


def _shown(folder: Path, *words: str) -> str:
    done = CliRunner(env={"COLUMNS": "160"}).invoke(commands, ["drift", str(folder), *words])
    assert done.exit_code == 0, done.output
    return " ".join(done.output.replace("│", " ").split())


def test_the_command_shows_run_iteration_and_rollout(tmp_path: Path) -> None:
    _written(tmp_path)
    run = _shown(tmp_path)
    # iteration, rollouts, merged, breaks, trained, masked, dropped, gap
    assert "1 1 100% of 1 0 3 0 0 0.5 0.5" in run
    assert "2 2 33% of 3 1 6 1 4 0.5 0.5" in run
    assert "all 3 50% of 4 1 9 1 4 0.5 0.5" in run
    assert "1 x retokenised" in run
    assert "5 x a grammar" in run
    iteration = _shown(tmp_path, "--iteration", "2")
    assert "r-a policy 1 100% of 1 0 3 0 0 0.5 0.5" in iteration
    assert "r-b policy 1 0% of 2 1 3 1 4" in iteration
    rollout = _shown(tmp_path, "--rollout", "r-b")
    # row, tokens, trained, calls
    assert "0 5 3 2" in rollout
    assert "step s2, retokenised at token 3: expected [4, 5], found [7]" in rollout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--iteration", "9"], "no drift report of iteration 9"),
        (["--rollout", "r-c"], "took a rollout 'r-c'"),
    ],
)
def test_what_the_run_does_not_have_is_said(tmp_path: Path, words: list[str], message: str) -> None:
    _written(tmp_path)
    done = CliRunner().invoke(commands, ["drift", str(tmp_path), *words])
    assert done.exit_code == 1
    assert message in done.output


def test_a_run_that_trained_nothing_has_no_report(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("name: run\nagent: a:b\n", encoding="utf-8")
    done = CliRunner().invoke(commands, ["drift", str(tmp_path)])
    assert done.exit_code == 1
    assert "no iteration was trained yet" in done.output
