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

What becomes of each field of a request, by dialect. A test sends a request for every row.

| word | meaning |
|---|---|
| passed | the engine is asked for it, by its own name for it; what the engine can't do, it refuses, and its error reaches the agent in the dialect's form |
| emulated | the gateway brings it about |
| accepted | it changes no answer: the real service's bookkeeping, or a hint |
| left out | nobody here knows it: the engine does not see it, the call stays trainable, and a line in the attempt's log names it, once for each field; the gateway counts them (`lightningrl_gateway_unknown_fields_total`), `lightningrl try` and `doctor` tell of them |
| refused | the request gets that status and code, in the dialect's error format, and is not recorded |

`null` is the same as leaving a field away.
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
