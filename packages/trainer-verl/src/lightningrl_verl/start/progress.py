"""What a person sees while a run trains: live on a terminal, elsewhere a plain line for each phase and iteration.

Its log has a line for each phase as it begins, so that one that hangs or is killed has said where it stood.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lightningrl.schema import Progress
from lightningrl_verl.training.metrics import Metrics

_NOTE_SECONDS = 10.0
"""How often the log says how far a phase is."""

_TELL_SECONDS = 60.0
"""How often output that is no terminal says so."""


REWARDS = ("train/reward", "val/reward", "val/reward_sampled", "test/reward")
"""What a training run shows of each iteration."""

LOSSES = ("sft/loss", "sft/val_loss")
"""What a fine-tuning shows of each update."""


class Display:
    """A `Watcher` for people."""

    def __init__(
        self,
        console: Console,
        name: str,
        iterations: int,
        lines: Sequence[Metrics] = (),
        log: Path | None = None,
        shown: Sequence[str] = REWARDS,
    ) -> None:
        """Prepare.

        Args:
            console: where it shows.
            name: the run's.
            iterations: how many there will be.
            lines: metrics of former starts of the run.
            log: file that phases are appended to. `None`: none.
            shown: metrics that are shown of each iteration, `REWARDS` or `LOSSES`.
        """
        self._console = console
        self._name = name
        self._iterations = iterations
        self._iteration = 0
        self._phase = "starting"
        self._rollouts = Progress()
        self._detail = ""
        self._lines: list[Metrics] = list(lines)
        self._log = log
        self._shown = shown
        self._noted = 0.0
        self._told = 0.0
        self._begun = False
        self._started = time.monotonic()
        self._phase_started = self._started
        self._trained_since: float | None = None
        self._trained = 0
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=4)

    def __enter__(self) -> Self:
        """Take over the terminal's last lines, if there is a terminal."""
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the terminal back."""
        if self._console.is_terminal:
            self._live.stop()

    def begin(self, iteration: int) -> None:
        """An iteration begins."""
        self._iteration = iteration
        self._begun = True
        if iteration and self._trained_since is None:
            self._trained_since = time.monotonic()

    def phase(self, name: str) -> None:
        """A phase begins."""
        self._phase = name
        self._phase_started = time.monotonic()
        self._rollouts = Progress()
        self._detail = ""
        self._note(name)
        self._tell(name)

    def detail(self, text: str) -> None:
        """How far the phase is, in place of what was said of it before."""
        self._detail = text
        self._move_on(text)

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self._note(text)
        # Texts quote the user's own words, in which brackets are no markup.
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def rollouts(self, progress: Progress) -> None:
        """The rollouts of this phase moved on."""
        self._rollouts = progress
        self._move_on(_counts(progress))

    def end(self, metrics: Metrics) -> None:
        """An iteration ended: keep its line, and print it where no terminal is."""
        self._lines.append(metrics)
        self._trained += 1 if self._iteration else 0
        self._note("ended")
        shown = self._plain(metrics)
        if shown and not self._console.is_terminal:
            self._console.print(shown, highlight=False, soft_wrap=True)

    def _move_on(self, how_far: str) -> None:
        """Say how far the phase is, in the log and without a terminal, unless that was said a moment ago."""
        text = f"{self._phase}, {how_far}"
        if time.monotonic() - self._noted > _NOTE_SECONDS:
            self._note(text)
        if time.monotonic() - self._told > _TELL_SECONDS:
            self._tell(text)

    def _tell(self, text: str) -> None:
        """Print a plain line where no terminal is: whoever reads a file sees that the run moves on."""
        self._told = time.monotonic()
        if not self._console.is_terminal:
            where = f"iteration {self._iteration}/{self._iterations}: " if self._begun else ""
            self._console.print(f"{where}{text}", highlight=False, markup=False, soft_wrap=True)

    def _note(self, text: str) -> None:
        self._noted = time.monotonic()
        if self._log is not None:
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            with self._log.open("a", encoding="utf-8") as log:
                log.write(f"{now} iteration {self._iteration}: {text}\n")

    def _plain(self, metrics: Metrics) -> str:
        """An iteration's line; empty where nothing was measured."""
        parts = [f"{k} {metrics[k]:.3f}" for k in self._shown if metrics.get(k) is not None]
        seconds = metrics.get("timing/iteration_seconds")
        if seconds is not None:
            parts.append(f"{seconds:.1f} s")
        where = f"iteration {metrics['iteration']}/{self._iterations}"
        return "  ".join([where, *parts]) if parts else ""

    def _render(self) -> Panel:
        elapsed = time.monotonic() - self._started
        title = f"[bold]{self._name}[/]  iteration {self._iteration}/{self._iterations}"
        body = Group(self._now(), self._bar(), self._rewards(), self._seconds())
        return Panel(
            body, title=title, subtitle=f"{elapsed:.0f} s{self._left()}", title_align="left"
        )

    def _now(self) -> Text:
        waited = time.monotonic() - self._phase_started
        text = f"{self._phase}  {waited:.1f} s"
        if self._rollouts.total:
            text += f"   {_counts(self._rollouts)}"
        return Text(f"{text}   {self._detail}" if self._detail else text)

    def _bar(self) -> ProgressBar:
        return ProgressBar(total=max(self._iterations, 1), completed=self._iteration)

    def _rewards(self) -> Table:
        table = Table.grid(padding=(0, 3))
        what, best = ("loss", min) if self._shown == LOSSES else ("reward", max)
        table.add_row(what, "base", "now", "best", style="dim")
        for key in self._shown:
            values = [line[key] for line in self._lines if line.get(key) is not None]
            if values:
                table.add_row(key, *(f"{v:.3f}" for v in (values[0], values[-1], best(values))))
        return table

    def _seconds(self) -> Text:
        last = self._lines[-1] if self._lines else {}
        parts = [
            f"{key.removeprefix('timing/').removesuffix('_seconds')} {value:.2f}"
            for key, value in last.items()
            if key.startswith("timing/") and key.endswith("_seconds")
        ]
        return Text("seconds  " + "  ".join(parts) if parts else "", style="dim")

    def _left(self) -> str:
        if self._trained_since is None or not self._trained:
            return ""
        per_iteration = (time.monotonic() - self._trained_since) / self._trained
        return f", about {per_iteration * (self._iterations - self._iteration + 1):.0f} s left"


def _counts(rollouts: Progress) -> str:
    text = f"rollouts {rollouts.ended}/{rollouts.total}"
    if rollouts.failed:
        text += f", {rollouts.failed} failed"
    if rollouts.mean_reward is not None:
        text += f", reward {rollouts.mean_reward:.3f}"
    return text
