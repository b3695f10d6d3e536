"""Write docs/reference/engine-fields.md from the table that engines are tested by.

python scripts/engine_fields_reference.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from lightningrl_testkit.engine_fields import ENGINE_FIELDS, EngineField

PAGE = Path(__file__).resolve().parent.parent / "docs" / "reference" / "engine-fields.md"

HEADER = """\
<!-- Written by scripts/engine_fields_reference.py; edit lightningrl_testkit/engine_fields.py instead. -->
# Engines: fields of a chat completion

What the built-in engine (`engine.backend: torch`) and vLLM do with each field that reaches them. What reaches them is in
[gateway: request fields](gateway-fields.md). A test sends each row to the built-in engine. vLLM's column is of version 0.24, from its
documentation; `tests/test_vllm.py` sends the rows to a vLLM where there is one.

| word | meaning |
|---|---|
| served | the engine does it |
| ignored | the answer is the same with it |
| refused | status 400, which names the field: it would change the answer, and the engine does not do it |

| field | value | built-in | vLLM | |
|---|---|---|---|---|
"""


def main() -> None:
    """Write the page."""
    PAGE.write_text(render(), encoding="utf-8")
    sys.stdout.write(f"wrote {PAGE.name}\n")


def render() -> str:
    """The whole page."""
    return HEADER + "\n".join(map(_row, ENGINE_FIELDS)) + "\n"


def _row(row: EngineField) -> str:
    value = row.value["type"] if isinstance(row.value, dict) and "type" in row.value else row.value
    shown = "a list with a function" if row.name == "tools" else f"`{json.dumps(value)}`"
    return f"| `{row.name}` | {shown} | {row.embedded} | {row.vllm} | {row.note} |"


if __name__ == "__main__":
    main()
