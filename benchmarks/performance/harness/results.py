"""Rows of results: measured, printed as a table, written as JSON.

Invariant: a results file is replaced as a whole by one run of its script, and says in `NAME.about.json`
by which command, of which commit, on which machine.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import psutil
from rich.table import Table

from lightningrl.cli.terminal import console

OURS = "lightningrl"


class Row(msgspec.Struct, frozen=True):
    """One figure."""

    case: str
    system: str
    """`lightningrl`, a peer with its version, or `direct`."""
    metric: str
    value: float | None
    """Median of the runs. `None`: there is none, and `unit` says why."""
    unit: str
    runs: int
    spread: float | None
    """Largest minus smallest run, as a share of the median. `None`: one run."""
    clients: int | None = None
    """Clients at once. `None`: the case has no number of clients."""


class Results:
    """The rows of one script's run."""

    def __init__(self, name: str, folder: Path, about: Mapping[str, object] | None = None) -> None:
        """Prepare; `about` joins what the about file says."""
        self._name = name
        self._folder = folder
        self._about = dict(about or {})
        self._started = datetime.now(UTC)
        self._commit = _commit()  # now: the results themselves will be a change
        self.rows: list[Row] = []

    def add(
        self,
        case: str,
        system: str,
        metric: str,
        values: Sequence[float],
        unit: str,
        *,
        clients: int | None = None,
    ) -> None:
        """Add the median of `values`, one per run."""
        median = statistics.median(values)
        spread = (max(values) - min(values)) / median if len(values) > 1 and median else None
        self.rows.append(
            Row(
                case,
                system,
                metric,
                round(median, 6),
                unit,
                len(values),
                None if spread is None else round(spread, 3),
                clients,
            )
        )

    def missing(self, case: str, system: str, reason: str) -> None:
        """Say that `system` could not be measured, and why."""
        self.rows.append(Row(case, system, "missing", None, reason, 0, None))

    def write(self) -> Path:
        """Write the rows and where they come from; return the rows' file."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{self._name}.json"
        path.write_bytes(_lines(self.rows))
        about = msgspec.json.format(
            msgspec.json.encode(_about(self._started, self._commit) | self._about), indent=1
        )
        self._folder.joinpath(f"{self._name}.about.json").write_bytes(about + b"\n")
        return path

    def show(self) -> None:
        """Print the rows, a system per column."""
        systems = sorted({row.system for row in self.rows}, key=lambda one: (one != OURS, one))
        table = Table(title=self._name)
        for heading in ("case", "clients", "metric", "unit"):
            table.add_column(heading)
        for system in systems:
            table.add_column(system, justify="right")
        cells: dict[tuple[str, str, str, str], dict[str, str]] = {}
        for row in self.rows:
            clients = "" if row.clients is None else str(row.clients)
            key = (row.case, clients, row.metric, row.unit)
            cells.setdefault(key, {})[row.system] = _shown(row)
        for key, values in cells.items():
            table.add_row(*key, *(values.get(system, "") for system in systems))
        console().print(table)


def _shown(row: Row) -> str:
    if row.value is None:
        return "missing"
    digits = 3 if abs(row.value) < 10 else 1 if abs(row.value) < 1000 else 0
    spread = "" if row.spread is None else f" ±{50 * row.spread:.0f}%"
    return f"{row.value:,.{digits}f}{spread}"


def _lines(rows: Sequence[Row]) -> bytes:
    """A JSON list with one row a line, so that a change shows as the lines that it changed."""
    return b"[\n" + b",\n".join(msgspec.json.encode(row) for row in rows) + b"\n]\n"


def _about(started: datetime, commit: str) -> dict[str, object]:
    return {
        "command": " ".join(["python", *sys.argv]),
        "commit": commit,
        "started": started.isoformat(timespec="seconds"),
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "machine": f"{psutil.cpu_count()} cores, {platform.machine()}, {_processor()}",
        "load_average": [round(one, 2) for one in os.getloadavg()],
    }


def _commit() -> str:
    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + (" +changes" if git("status", "-s") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
