"""The drift report of a run, as files.

`drift.json` has the sums, of each iteration and of the run; `drift/iteration-NNNNNN.jsonl` a line per rollout and
policy. Invariant: an iteration's files stand before its checkpoint does, so a run that goes on has them all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from lightningrl.experience.drift import DriftReport, Gap, RolloutDrift, RowDrift, joined, total
from lightningrl.experience.trajectory import Row
from lightningrl.machine.durable import write_text
from lightningrl_verl.training.files import RunFiles


def with_gaps(
    drifts: Sequence[RolloutDrift],
    rows: Mapping[str, Sequence[Row]],
    gaps: Mapping[str, Sequence[Gap]],
) -> tuple[RolloutDrift, ...]:
    """The report with the gaps of the rows that were part of an update.

    Args:
        drifts: by rollout and policy.
        rows: alias -> rows of its update; a row of the report may stand there as one row per call.
        gaps: alias -> aligned with `rows`; of the policies that were updated.
    """
    # A transition's tokens stand in one row of its policy.
    of_span = {
        (alias, row.rollout_id, row.spans[0].index): gap
        for alias, of_policy in gaps.items()
        for row, gap in zip(rows[alias], of_policy, strict=True)
    }

    def measured(drift: RolloutDrift, row: RowDrift) -> RowDrift:
        keys = ((drift.policy, drift.rollout, span.index) for span in row.spans)
        return msgspec.structs.replace(row, gap=joined(of_span.get(key) for key in keys))

    return tuple(
        msgspec.structs.replace(one, rows=tuple(measured(one, row) for row in one.rows))
        for one in drifts
    )


def write_drift(files: RunFiles, iteration: int, drifts: Sequence[RolloutDrift]) -> None:
    """Write an iteration's files, in place of those of an earlier start."""
    files.rollout_drift(iteration).parent.mkdir(exist_ok=True)
    lines = b"".join(msgspec.json.encode(one) + b"\n" for one in drifts)
    write_text(files.rollout_drift(iteration), lines.decode())
    report = DriftReport()
    if files.drift.exists():
        report = msgspec.json.decode(files.drift.read_bytes(), type=DriftReport)
    report = report.with_iteration(iteration, total(drifts))
    write_text(
        files.drift, msgspec.json.format(msgspec.json.encode(report), indent=1).decode() + "\n"
    )
