"""Write docs/reference/gateway-fields.md from the dialects' field tables.

python scripts/gateway_fields_reference.py
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from lightningrl.gateway.dialects import FIELDS
from lightningrl.gateway.dialects.fields import Field, FieldTable, Handling

PAGE = Path(__file__).resolve().parent.parent / "docs" / "reference" / "gateway-fields.md"

HEADER = """\
<!-- Written by scripts/gateway_fields_reference.py; edit the tables in gateway/dialects/ instead. -->
# Gateway: request fields

What becomes of each field of a request to the gateway, by dialect. A test sends a request for every row.

| word | meaning |
|---|---|
| passed | the engine gets it, under its own name for it. What the engine can't do, it refuses; the agent gets that error in the dialect's form |
| emulated | the gateway does it |
| accepted | it changes no answer: a hint, or a field for the real service's bookkeeping |
| left out | the gateway does not know it. The engine does not see it, and the call stays trainable. A line in the attempt's log names it, and `lightningrl try` and `doctor` tell of it |
| refused | the request gets that status and code, in the dialect's error format, and is not recorded |

`null` is the same as leaving a field out.
"""


def main() -> None:
    """Write the page."""
    PAGE.write_text(render(), encoding="utf-8")
    sys.stdout.write(f"wrote {PAGE.name}\n")


def render(tables: Mapping[str, FieldTable] = FIELDS) -> str:
    """The whole page."""
    return "\n".join([HEADER, *(_section(route, table) for route, table in tables.items())])


def _section(route: str, table: FieldTable) -> str:
    rows = "\n".join(_row(row) for row in table.rows)
    head = "| field | values | what becomes of it | how |\n|---|---|---|---|"
    return f"## `POST /v1/{route}`\n\n{head}\n{rows}\n"


def _row(row: Field) -> str:
    name = f"`{row.name}`" if row.name.islower() and " " not in row.name else row.name
    outcome = row.handling.value
    if row.handling is Handling.REFUSED:
        outcome = f"refused: {row.status} (`{row.code}`)"
    return f"| {name} | {row.value} | {outcome} | {row.note} |"


if __name__ == "__main__":
    main()
