"""Write docs/reference/settings.md from the table of settings.

python scripts/settings_reference.py
"""

from __future__ import annotations

import sys
from pathlib import Path

from lightningrl.settings import GIVEN_TO_AGENTS, SETTINGS, Setting

PAGE = Path(__file__).resolve().parent.parent / "docs" / "reference" / "settings.md"

HEADER = """\
<!-- Written by scripts/settings_reference.py; edit the table in lightningrl/settings.py instead. -->
# Settings

```bash
LIGHTNINGRL_PORT=8800 lightningrl serve store.db
```

These are all environment variables that LightningRL reads. An option on the command line wins over its variable, and a variable over its default. A
variable that begins with `LIGHTNINGRL_` and is not listed here is an error, which names the nearest one.

| variable | read by | default | meaning |
|---|---|---|---|
"""

FOOTER = """
Those with *(or file)* are secrets. `NAME_FILE` may name a file that holds the value instead. It must not be readable for every user of the machine. Never
set both.

A runner sets {given} for an agent that is a `command`: [train your own agent](../how-to/train-your-own-agent.md#what-an-agent-may-be).
"""


def main() -> None:
    """Write the page."""
    PAGE.write_text(render(), encoding="utf-8")
    sys.stdout.write(f"wrote {PAGE.name}\n")


def render() -> str:
    """The whole page."""
    given = ", ".join(f"`{name}`" for name in GIVEN_TO_AGENTS)
    return HEADER + "".join(_row(one) for one in SETTINGS) + FOOTER.format(given=given)


def _row(one: Setting) -> str:
    name = f"`{one.name}`" + (" *(or file)*" if one.secret else "")
    return f"| {name} | {one.read_by} | {one.default} | {one.meaning} |\n"


if __name__ == "__main__":
    main()
