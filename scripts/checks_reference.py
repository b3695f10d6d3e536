"""Write `docs/reference/checks.md`: what users did, and what the checks say of it, by running the cases of the tests."""

from __future__ import annotations

import asyncio
import importlib
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reference" / "checks.md"
HEAD = "| kind | what the user did | what is said | where | exit code |"


def render() -> str:
    """The page with its table made anew; takes some seconds, since every case is run."""
    sys.path.insert(0, str(ROOT / "tests"))
    cases = importlib.import_module("check_cases")
    rows: list[str] = []
    for case in cases.CASES:
        with tempfile.TemporaryDirectory() as folder:
            said = asyncio.run(cases.examine_case(case, Path(folder)))
        rows.append(cases.row(case, said))
    text, _, _ = PAGE.read_text(encoding="utf-8").partition(HEAD)
    return f"{text}{HEAD}\n|---|---|---|---|---|\n" + "\n".join(rows) + "\n"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
