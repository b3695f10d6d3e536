"""`lightningrl drift RUN`: what was trained of what was sampled, and why not the rest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import click
import msgspec
from rich.console import Group
from rich.table import Table
from rich.text import Text

from lightningrl.cli.stored_run import find_run_folder
from lightningrl.cli.terminal import console
from lightningrl.errors import NotFound
from lightningrl.experience.drift import Drift, DriftReport, Gap, RolloutDrift

_COUNTS = ("merged", "breaks", "trained", "masked", "dropped", "log-prob gap: mean", "max")


@click.command()
@click.argument("run", metavar="RUN")
@click.option("--iteration", type=int, help="The rollouts of this iteration.")
@click.option("--rollout", metavar="ID", help="The rows and breaks of this rollout.")
def drift(run: str, iteration: int | None, rollout: str | None) -> None:
    """Show the drift report of a training run.

    Per iteration; per rollout of one iteration; or of one rollout row by row, with the tokens on both sides of
    each break. RUN is a run's folder, or its name in runs/.
    """
    folder = find_run_folder(run)
    if rollout is not None:
        picture = rollout_picture(_of_rollout(folder, rollout, iteration))
    elif iteration is not None:
        picture = iteration_picture(iteration, list(_lines(folder, iteration)))
    else:
        picture = run_picture(read_report(folder))
    console().print(picture)


def read_report(folder: Path) -> DriftReport:
    """A run's report.

    Raises:
        NotFound: the run has trained nothing yet.
    """
    path = folder / "drift.json"
    if not path.exists():
        raise NotFound(f"{str(folder)!r} has no drift.json: no iteration was trained yet")
    return msgspec.json.decode(path.read_bytes(), type=DriftReport)


def run_picture(report: DriftReport) -> Group:
    """A line per iteration, one for all of them, and what was left out for which reason."""
    table = _table("iteration", "rollouts")
    for name, one in report.iterations.items():
        table.add_row(name, str(one.rollouts), *_counts(one))
    table.add_section()
    table.add_row("all", str(report.run.rollouts), *_counts(report.run))
    causes = (f"{count} x {cause}" for cause, count in report.run.breaks.items())
    reasons = (f"{count} x {reason}" for reason, count in report.run.untrainable.items())
    lines = [*_listed("breaks:", causes), *_listed("tokens not trained:", reasons)]
    if report.run.rendered:
        lines.append(Text(f"tokenised from text: {report.run.rendered} of the trained tokens"))
    return Group(table, *lines)


def iteration_picture(iteration: int, drifts: Sequence[RolloutDrift]) -> Table:
    """A line per rollout and policy."""
    table = _table("rollout", "policy", "rows", title=f"iteration {iteration}")
    for one in drifts:
        table.add_row(one.rollout, one.policy, str(len(one.rows)), *_counts(one.sums))
    return table


def rollout_picture(drifts: Sequence[RolloutDrift]) -> Group:
    """Per policy the rollout's rows and its breaks."""
    parts: list[Table | Text] = []
    for one in drifts:
        table = Table(title=f"rollout {one.rollout}, policy {one.policy}")
        for heading in ("row", "tokens", "trained", "calls", *_COUNTS[-2:]):
            table.add_column(heading, justify="right")
        for place, row in enumerate(one.rows):
            cells = (place, row.tokens, row.trained, len(row.spans))
            table.add_row(*map(str, cells), *_gap(row.gap))
        broken = (
            f"step {found.step_id}, {found.cause} at token {found.position}:"
            f" expected {list(found.expected)}, found {list(found.found)}"
            for found in one.breaks
        )
        reasons = (f"{count} x {reason}" for reason, count in one.untrainable.items())
        parts += [table, *_listed("breaks:", broken), *_listed("tokens not trained:", reasons)]
    return Group(*parts)


def _of_rollout(folder: Path, rollout: str, iteration: int | None) -> list[RolloutDrift]:
    names = read_report(folder).iterations if iteration is None else (str(iteration),)
    for name in names:
        found = [one for one in _lines(folder, int(name)) if one.rollout == rollout]
        if found:
            return found
    raise NotFound(
        f"no iteration of {str(folder)!r} took a rollout {rollout!r}; give --iteration to list those"
        " that one took"
    )


def _lines(folder: Path, iteration: int) -> Iterator[RolloutDrift]:
    path = folder / "drift" / f"iteration-{iteration:06d}.jsonl"
    if not path.exists():
        raise NotFound(f"{str(folder)!r} has no drift report of iteration {iteration}")
    for line in path.read_bytes().splitlines():
        yield msgspec.json.decode(line, type=RolloutDrift)


def _table(*headings: str, title: str | None = None) -> Table:
    table = Table(title=title)
    for heading in headings:
        table.add_column(heading)
    for heading in _COUNTS:
        table.add_column(heading, justify="right")
    return table


def _counts(drift: Drift) -> tuple[str, ...]:
    share = drift.merged_share
    merged = "" if share is None else f"{share:.0%} of {drift.continuing}"
    counts = (sum(drift.breaks.values()), drift.trained, drift.masked, drift.dropped)
    return (merged, *map(str, counts), *_gap(drift.gap))


def _gap(gap: Gap | None) -> tuple[str, str]:
    return ("", "") if gap is None else (f"{gap.mean:.2g}", f"{gap.max:.2g}")


def _listed(heading: str, lines: Iterable[str]) -> list[Text]:
    found = [Text(f"  {line}") for line in lines]
    return [Text(heading), *found] if found else []
