"""Write `docs/reference/checks.md` and `docs/troubleshooting.md` from the checks, by running the cases of the tests."""

from __future__ import annotations

import asyncio
import importlib
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reference" / "checks.md"
TROUBLES = ROOT / "docs" / "troubleshooting.md"
HEAD = "| kind | what the user did | what is said | where | exit code |"


def render() -> tuple[str, str]:
    """The page of checks with its table made anew, and that of troubles; takes a minute, since every case is run."""
    sys.path.insert(0, str(ROOT / "tests"))
    cases = importlib.import_module("check_cases")
    troubles = importlib.import_module("check_troubles")
    seen = []
    for case in (*cases.CASES, troubles.UNJOINED):
        with tempfile.TemporaryDirectory() as folder:
            seen.append((case, asyncio.run(cases.examine_case(case, Path(folder)))))
    rows = [cases.row(case, said) for case, said in seen if case is not troubles.UNJOINED]
    text, _, _ = PAGE.read_text(encoding="utf-8").partition(HEAD)
    table = f"{text}{HEAD}\n|---|---|---|---|---|\n" + "\n".join(rows) + "\n"
    return table, troubles.page([*seen, *troubles.operational()])


if __name__ == "__main__":
    table, troubles = render()
    PAGE.write_text(table, encoding="utf-8")
    TROUBLES.write_text(troubles, encoding="utf-8")
