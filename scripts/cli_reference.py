"""Write docs/reference/cli.md from the help texts of the commands.

python scripts/cli_reference.py
"""

from __future__ import annotations

import sys
from importlib.metadata import entry_points
from pathlib import Path

import click

from lightningrl.cli import commands

PAGE = Path(__file__).resolve().parent.parent / "docs" / "reference" / "cli.md"
WIDTH = 88
"""Columns of the help texts, whatever the terminal has."""

HEADER = """\
<!-- Written by scripts/cli_reference.py; edit the commands' docstrings instead. -->
# Command line reference

```bash
lightningrl --help           # and `lightningrl train --help`, and so on
```

| commands | come with |
|---|---|
{packages}

| exit code | meaning |
|---|---|
| 0 | it went well |
| 1 | something went wrong, and the message on stderr says what |
| 2 | the arguments, the recipe or a setting are wrong |
| 3 | a guard stopped training, or nothing could be learned |
| 130 | Ctrl-C |

[Settings](settings.md) lists what the environment sets.
"""


def main() -> None:
    """Write the page."""
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(render(), encoding="utf-8")
    sys.stdout.write(f"wrote {PAGE.name}\n")


def render() -> str:
    """The whole page."""
    with click.Context(
        commands, info_name="lightningrl", terminal_width=WIDTH, help_option_names=["-h", "--help"]
    ) as group:
        parts = [
            HEADER.format(packages=_packages()),
            _block("lightningrl", commands.get_help(group)),
        ]
        for name in commands.list_commands(group):
            command = commands.get_command(group, name)
            assert command is not None
            with click.Context(command, group, info_name=name, terminal_width=WIDTH) as context:
                parts.append(_block(f"lightningrl {name}", command.get_help(context)))
    return "\n".join(parts)


def _packages() -> str:
    """The rows of commands that come with another distribution than core, and core's."""
    entries = [one for one in entry_points(group="lightningrl.commands") if one.dist is not None]
    names: dict[str, list[str]] = {}
    for one in sorted(entries, key=lambda entry: entry.name):
        assert one.dist is not None
        names.setdefault(one.dist.name, []).append(f"`{one.name}`")
    rows = [f"| {', '.join(names[dist])} | `{dist}` |" for dist in sorted(names)]
    return "\n".join([*rows, "| all others | `lightningrl` |"])


def _block(title: str, text: str) -> str:
    lines = "\n".join(line.rstrip() for line in text.splitlines())
    return f"## `{title}`\n\n```text\n{lines}\n```\n"


if __name__ == "__main__":
    main()
