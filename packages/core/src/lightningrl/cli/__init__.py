"""`lightningrl`: the commands. Each is a thin wrapper around functions that can be called without it.

Invariants:
- Starting is fast: a command's module is imported when the command is used, and not before.
- An error that LightningRL raises on purpose is one line on stderr, `Error: ...`, and its `exit_code`: 2
  where the user's settings or arguments are wrong, 3 where a guard stopped training, else 1. Anything else
  keeps its traceback.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, cast

import click

from lightningrl.errors import ConfigError, LightningError
from lightningrl.settings import check_names
from lightningrl.user_input.names import suggest

GROUP = "lightningrl.commands"
"""The entry-point group of further commands; each entry is a `click.Command`."""

_OWN = {
    "credit": "lightningrl.cli.credit:credit",
    "db": "lightningrl.cli.db:db",
    "delete": "lightningrl.cli.operate:delete",
    "doctor": "lightningrl.cli.doctor:doctor",
    "drift": "lightningrl.cli.drift:drift",
    "export": "lightningrl.cli.export:export",
    "fork": "lightningrl.cli.fork:fork",
    "import": "lightningrl.cli.import_run:import_command",
    "judge": "lightningrl.cli.judge:judge",
    "plot": "lightningrl.cli.plot:plot",
    "rescore": "lightningrl.cli.rescore:rescore",
    "retry": "lightningrl.cli.operate:retry",
    "runner": "lightningrl.cli.runner:runner",
    "serve": "lightningrl.cli.serve:serve",
    "show": "lightningrl.cli.show:show",
    "try": "lightningrl.cli.try_agent:try_agent",
}
_TRAINER = ("the trainer", "lightningrl-verl")
_ELSEWHERE = {
    "compare": _TRAINER,
    "eval": _TRAINER,
    "model": _TRAINER,
    "sft": _TRAINER,
    "tiny": _TRAINER,
    "train": _TRAINER,
    "ui": ("the page of runs", "'lightningrl[ui]'"),
}
"""Commands that other distributions bring: what they come with, and what pip is asked for."""


class Commands(click.Group):
    """The group `lightningrl`: own commands, and those of the entry points."""

    def __init__(self, *args: Any, entry_group: str = GROUP, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._entry_group = entry_group

    def _entries(self) -> dict[str, EntryPoint]:
        return {entry.name: entry for entry in entry_points(group=self._entry_group)}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, sorted."""
        return sorted({*_OWN, *self._entries(), *super().list_commands(ctx)})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name. `None`: there is none."""
        if cmd_name in _OWN:
            module, _, attribute = _OWN[cmd_name].partition(":")
            return getattr(import_module(module), attribute)
        entry = self._entries().get(cmd_name)
        return super().get_command(ctx, cmd_name) if entry is None else _load(entry)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that `args` begin with; an unknown one is an error that helps."""
        name = args[0]
        if self.get_command(ctx, name) is None:
            if name in _ELSEWHERE:
                what, distribution = _ELSEWHERE[name]
                raise ConfigError(
                    f"{name!r} comes with {what}, which is not installed here:"
                    f" pip install {distribution}"
                )
            ctx.fail(f"No such command {name!r}.{suggest(name, self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; an error of ours becomes one line."""
        try:
            check_names()
            return super().invoke(ctx)
        except LightningError as error:
            if ctx.params["debug"]:
                raise
            click.ClickException(str(error)).show()
            ctx.exit(error.exit_code)


def _load(entry: EntryPoint) -> click.Command:
    """The command of an entry point; one that can't be imported says so when it is used."""
    try:
        return cast("click.Command", entry.load())
    except ImportError as error:
        reason = f"can't be loaded: {error}"

        def refuse(**_: object) -> None:
            raise ConfigError(f"{entry.name!r} ({entry.value}) {reason}")

        return click.Command(
            entry.name,
            callback=refuse,
            short_help=f"({reason})",
            context_settings={"ignore_unknown_options": True},
            params=[click.Argument(["arguments"], nargs=-1)],
        )


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="lightningrl", prog_name="lightningrl")
@click.option(
    "--debug", is_flag=True, envvar="LIGHTNINGRL_DEBUG", help="Show tracebacks of errors."
)
def commands(debug: bool) -> None:
    """Train the model behind any agent by reinforcement learning, without rewriting it."""


def main() -> None:
    """The program `lightningrl`."""
    commands.main(prog_name="lightningrl")
